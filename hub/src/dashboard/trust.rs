//! What can be done about a node's trust: renew it, revoke it, remove it; each says first what will happen.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::NodeId;
use serde::Deserialize;

use super::format::Clock;
use super::layout::{Viewer, csrf};
use super::pages::{Asked, may, unknown};
use super::session::{Sent, ours};
use super::{OrShown as _, Shown};
use crate::access;
use crate::api::extract::Path;
use crate::api::problem::Problem;
use crate::api::resource::{NodeDetail, Role};
use crate::enrollment::Reason;
use crate::web::App;

/// The forms below a node, for whoever may send them.
pub(super) fn section(node: &NodeDetail, viewer: &Viewer, clock: Clock) -> Markup {
    let n = &node.node;
    html! {
        @if viewer.role != Role::Viewer {
            section aria-labelledby="trust" {
                header { h2 #trust { "Trust" } }
                div.card.pad {
                    @if let Some(at) = n.revoked_at {
                        p { "Revoked " (clock.ago(at)) ". To have this machine back, enroll it with a new join token." }
                    } @else {
                        details {
                            summary { "Renew its certificate…" }
                            form.form method="post" action={ "/nodes/" (n.id) "/renew" } {
                                (csrf(&viewer.csrf))
                                p { "It makes a new key and gets a new certificate at once, or when it returns. Its session is followed by another one." }
                                div { button type="submit" { "Renew the certificate of " (n.name) } }
                            }
                        }
                        details {
                            summary { "Revoke this node…" }
                            form.form method="post" action={ "/nodes/" (n.id) "/revoke" } {
                                (csrf(&viewer.csrf))
                                p { "Its session ends at once, and none of its certificates and keys is accepted any more. Its services go on running; nobody hears of them. This cannot be undone: to come back, the machine is enrolled anew." }
                                div { label for="reason" { "Why" } select #reason name="reason" { @for reason in Reason::ALL { option value=(reason.as_str()) { (said(reason)) } } } }
                                div { label for="comment" { "For the audit log" } input #comment name="comment" maxlength="500" autocomplete="off"; }
                                div { button type="submit" { "Revoke " (n.name) } }
                            }
                        }
                    }
                    details {
                        summary { "Remove this node…" }
                        form.form method="post" action={ "/nodes/" (n.id) "/remove" } {
                            (csrf(&viewer.csrf))
                            p { @if n.revoked_at.is_none() { "It is revoked, as above. " } "It is listed no more, its alerts are closed, and its name is free for another. What it measured stays until retention takes it." }
                            div { button type="submit" { "Remove " (n.name) } }
                        }
                    }
                }
            }
        }
    }
}

fn said(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "No reason given",
        Reason::KeyCompromise => "Somebody else has or may have its key",
        Reason::Superseded => "Another node does its work now",
        Reason::CessationOfOperation => "It is no longer there",
        Reason::PrivilegeWithdrawn => "It may no longer take part",
    }
}

#[derive(Deserialize)]
pub(super) struct RevokeForm {
    csrf: String,
    reason: String,
    #[serde(default)]
    comment: String,
}

/// `POST /nodes/{node}/revoke`
pub(super) async fn revoke(
    State(app): State<App>,
    id: Asked<Path<NodeId>>,
    sent: Sent<RevokeForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let done = async {
        let who = sent.visitor.principal();
        may(&sent.visitor, access::Role::Operator)?;
        app.roster.node(who, id).ok_or_else(unknown)?;
        let reason = sent.form.reason.parse()?;
        app.state.enrollment.revoke(id, reason, sent.form.comment.trim(), &who.actor(), app.now()).await?;
        Ok::<_, Problem>(())
    };
    done.await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/nodes/{id}")).into_response())
}

#[derive(Deserialize)]
pub(super) struct RemoveForm {
    csrf: String,
}

/// `POST /nodes/{node}/remove`
pub(super) async fn remove(
    State(app): State<App>,
    id: Asked<Path<NodeId>>,
    sent: Sent<RemoveForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let done = async {
        let who = sent.visitor.principal();
        may(&sent.visitor, access::Role::Operator)?;
        app.roster.node(who, id).ok_or_else(unknown)?;
        app.state.enrollment.remove(id, &who.actor(), app.now()).await?;
        Ok::<_, Problem>(())
    };
    done.await.or_shown(&app)?;
    Ok(Redirect::to("/").into_response())
}

ours!(RevokeForm, RemoveForm);
