//! The dashboard in a real browser: sign in, make a token, enroll with it, watch a service fall ill.

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Browser, Engine, Hub, SOON, View, until_async};
use thirtyfour::{By, Key};

const SERVICES: &str = include_str!("../../../compose/test/compose.yaml");

/// Waits until the element's text holds `wanted`.
async fn reads(browser: &Browser, by: By, wanted: &str) -> Result<()> {
    until_async(&format!("{by:?} to read {wanted:?}"), SOON, async || {
        let text = browser.find(by.clone()).await?.text().await?;
        ensure!(text.to_lowercase().contains(&wanted.to_lowercase()), "it reads {text:?}");
        Ok(Some(()))
    })
    .await
}

async fn submit(browser: &Browser, form: &str) -> Result<()> {
    Ok(browser.find(By::Css(format!("{form} button[type=submit]"))).await?.click().await?)
}

/// A page that is loaded again forgets this.
async fn mark(browser: &Browser) -> Result<()> {
    browser.execute("window.notLoadedAgain = true", vec![]).await?;
    Ok(())
}

async fn was_not_loaded_again(browser: &Browser) -> Result<bool> {
    Ok(browser.execute("return window.notLoadedAgain === true", vec![]).await?.json().as_bool() == Some(true))
}

/// Nothing scrolls sideways on a phone, and the page caused no complaint.
async fn fits(browser: &Browser, page: &str) -> Result<()> {
    browser.photograph(page).await?;
    for view in View::ALL {
        browser.look(view).await?;
        let over = browser.overflow().await?;
        ensure!(over <= 0, "{page} is {over} pixels wider than a window of {}", view.width);
    }
    browser.look(View::ALL[0]).await?;
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{page}: {complaints:?}");
    Ok(())
}

#[tokio::test]
async fn from_sign_in_to_a_service_that_turns_unhealthy_without_a_reload() -> Result<()> {
    let hub = Hub::builder().set("alert-unhealthy-after", "1s").start()?;
    let base = hub.endpoints().http.clone();
    let browser = Browser::start().await?;

    browser.goto(&base).await?;
    reads(&browser, By::Tag("body"), "sign in").await?;
    fits(&browser, "sign-in").await?;
    browser.goto(hub.sign_in_link()?).await?;
    submit(&browser, "form").await?;
    reads(&browser, By::Tag("body"), "tenant").await?;
    fits(&browser, "empty").await?;

    browser.goto(format!("{base}/tenants")).await?;
    browser.find(By::Css("form input[name=id]")).await?.send_keys("acme").await?;
    browser.find(By::Css("form input[name=name]")).await?.send_keys("Acme GmbH").await?;
    submit(&browser, "form[method=post][action='/tenants']").await?;
    reads(&browser, By::Tag("body"), "Acme GmbH").await?;

    browser.goto(format!("{base}/join?tenant=acme")).await?;
    browser.find(By::Css("input[name=name]")).await?.send_keys("press-1").await?;
    fits(&browser, "join").await?;
    submit(&browser, "form[action='/join']").await?;
    let command = browser.find(By::Id("command")).await?.text().await?;
    let token = command.split_ascii_whitespace().find(|word| word.starts_with("hfj_")).context("no token")?;
    mark(&browser).await?;
    let engine = Engine::from_environment()?;
    let mut agent =
        Agent::create()?.set("docker-host", format!("unix://{}", engine.socket().display())).set("interval", "1s");
    agent.enroll(token)?;
    agent.run()?;
    reads(&browser, By::Id("waiting"), "enrolled").await?;
    reads(&browser, By::Id("waiting"), "press-1").await?;
    ensure!(was_not_loaded_again(&browser).await?, "the page that waits was loaded again");
    fits(&browser, "joined").await?;

    let project = engine.project("e2e-dashboard", SERVICES)?;
    project.up()?;
    browser.goto(&base).await?;
    browser.find(By::LinkText("press-1")).await?.click().await?;
    let row = By::Id(format!("s-{}/fragile/1", project.name()));
    reads(&browser, row.clone(), "healthy").await?;
    mark(&browser).await?;
    project.exec("fragile", &["touch", "/tmp/sick"])?;
    reads(&browser, row, "unhealthy").await?;
    ensure!(was_not_loaded_again(&browser).await?, "the node's page was loaded again");
    fits(&browser, "node").await?;

    for page in ["alerts", "audit", "tenants", "tenants/acme", "trust", "api-tokens"] {
        browser.goto(format!("{base}/{page}")).await?;
        reads(&browser, By::Tag("body"), "acme")
            .await
            .or_else(|error| if page == "api-tokens" { Ok(()) } else { Err(error) })?;
        fits(&browser, &page.replace('/', "-")).await?;
    }
    browser.goto(&base).await?;
    reads(&browser, By::Tag("body"), "press-1").await?;
    fits(&browser, "fleet").await?;

    // A rollout without the mouse.
    browser.goto(format!("{base}/rollouts/new")).await?;
    fits(&browser, "rollout-new").await?;
    browser.find(By::Id("action")).await?.send_keys("Hand over").await?;
    browser.find(By::Id("reason")).await?.send_keys("before the move" + Key::Return).await?;
    reads(&browser, By::Tag("h1"), "on 1 node?").await?;
    reads(&browser, By::Tag("table"), "press-1").await?;
    fits(&browser, "rollout-confirm").await?;
    browser.active_element().await?.send_keys("" + Key::Return).await?;
    reads(&browser, By::Id("view"), "before the move").await?;
    mark(&browser).await?;
    reads(&browser, By::Id("w-1"), "watched").await?;
    browser.find(By::Css("#act-pause summary")).await?.send_keys("" + Key::Return).await?;
    browser.find(By::Id("why-pause")).await?.send_keys("lunch").await?;
    fits(&browser, "rollout").await?;
    ensure!(was_not_loaded_again(&browser).await?, "the rollout's page was loaded again");
    browser.find(By::Id("why-pause")).await?.send_keys("" + Key::Return).await?;
    reads(&browser, By::Id("view"), "lunch").await?;
    browser.goto(format!("{base}/rollouts")).await?;
    reads(&browser, By::Id("view"), "held").await?;
    fits(&browser, "rollouts").await?;

    browser.goto(&base).await?;
    browser.find(By::LinkText("press-1")).await?.click().await?;
    browser.find(By::XPath("//summary[contains(., 'Revoke')]")).await?.click().await?;
    fits(&browser, "node-revoke").await?;
    submit(&browser, "form[action$='/revoke']").await?;
    reads(&browser, By::Id("notes"), "may not connect any more").await?;
    reads(&browser, By::Id("node-head"), "revoked").await?;
    fits(&browser, "node-revoked").await?;
    browser.quit().await
}
