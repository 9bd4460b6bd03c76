//! Getting in: a one-time link, or an API token.

use maud::{Markup, html};

/// The page behind a one-time link. The link is used up by its button, not by looking, so that the preview of a chat
/// program does not burn it.
pub fn link(code: &str) -> Markup {
    html! {
        h1 { "Sign in" }
        p.quiet { "This link works once." }
        form method="post" action="/sign-in" {
            input type="hidden" name="code" value=(code);
            button.primary type="submit" autofocus { "Continue to the dashboard" }
        }
    }
}

/// The page for everybody else.
pub fn token(error: Option<&str>, next: &str) -> Markup {
    html! {
        h1 { "Sign in" }
        @if let Some(error) = error { p.note.critical role="alert" { (error) } }
        form.form method="post" action="/sign-in" {
            @if next != "/" { input type="hidden" name="next" value=(next); }
            div {
                label for="code" { "API token or sign-in code" }
                input #code name="code" type="password" required autocomplete="off" autocapitalize="none" spellcheck="false" maxlength="200" placeholder="hft_…" autofocus
                    aria-invalid=[error.map(|_| "true")];
            }
            button.primary type="submit" { "Sign in" }
        }
        div.or { "or" }
        p.quiet.small { "Make a one-time link on the hub's machine: " code { "hyperfactory-hub sign-in" } }
    }
}

/// An error somebody runs into, with the way on.
pub fn problem(title: &str, detail: &str) -> Markup {
    html! {
        h1 { (title) }
        p { (detail) }
        a.button href="/" { "To the fleet" }
    }
}
