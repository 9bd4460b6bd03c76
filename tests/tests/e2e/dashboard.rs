//! The dashboard in a real browser: sign in, make a token, enroll with it, watch a service fall ill.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::fleet::{self, Begun, Fleet, Options, Tokens};
use hyperfactory_tests::rig::{Agent, Browser, Engine, Hub, SOON, View, until_async};
use protocol::message::ServiceHealth;
use thirtyfour::{By, Key, TypingData};

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
    reads(&browser, By::Id("command"), "hfj_").await?;
    let command = browser.find(By::Id("command")).await?.text().await?;
    let token = command.split_ascii_whitespace().find(|word| word.starts_with("hfj_")).context("no token")?;
    mark(&browser).await?;
    let engine = Engine::from_environment()?;
    let mut agent = Agent::create()?.watch(&engine).set("interval", "1s");
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
    reads(&browser, By::Id("rollout-head"), "before the move").await?;
    mark(&browser).await?;
    reads(&browser, By::Id("w-1"), "watched").await?;
    browser.find(By::Css("#act-pause summary")).await?.send_keys("" + Key::Return).await?;
    browser.find(By::Id("why-pause")).await?.send_keys("lunch").await?;
    fits(&browser, "rollout").await?;
    ensure!(was_not_loaded_again(&browser).await?, "the rollout's page was loaded again");
    browser.find(By::Id("why-pause")).await?.send_keys("" + Key::Return).await?;
    reads(&browser, By::Id("rollout-head"), "lunch").await?;
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

/// Types keys at whatever has the focus.
async fn press(browser: &Browser, keys: impl Into<TypingData>) -> Result<()> {
    Ok(browser.active_element().await?.send_keys(keys).await?)
}

#[tokio::test]
async fn several_nodes_are_told_at_once_without_the_mouse() -> Result<()> {
    const NODES: usize = 24;
    let hub = Hub::builder()
        .set("alert-unhealthy-after", "1s")
        .set("enrollments-per-second", "10000")
        .set("enrollments-per-source", "10000")
        .start()?;
    let base = hub.endpoints().http.clone();
    let (stores, api) = (fleet::identity_stores(None, NODES), hub.api().token().context("no token")?.to_owned());
    for tenant in ["acme", "zeta"] {
        hub.tenant(tenant)?;
    }
    fleet::enroll(&stores, &Tokens::from_api(fleet::Api::new(&base, &api), vec!["acme".into(), "zeta".into()])).await?;
    let options = Options { series: 40, begun: Some(Begun(Arc::new(|_| {}))), ..Options::default() };
    let nodes = Fleet::start(&options, &stores)?;
    ensure!(nodes.wait_for_sessions(NODES, SOON).await, "{} sessions", nodes.up());

    let browser = Browser::start().await?;
    browser.goto(hub.sign_in_link()?).await?;
    submit(&browser, "form").await?;
    browser.goto(&base).await?;
    reads(&browser, By::Id("counts"), "24").await?;
    mark(&browser).await?;
    // The second and the third row; one more, and not.
    press(&browser, "jjxjx").await?;
    press(&browser, "jxx").await?;
    reads(&browser, By::Id("picked"), "2 nodes selected").await?;
    let row =
        "return [...document.querySelectorAll('#rows input:checked')].map(box => box.closest('tr').rowIndex).join()";
    let rows = browser.execute(row, vec![]).await?;
    ensure!(rows.json() == "2,3", "rows {}", rows.json());
    fits(&browser, "selection").await?;
    // What changes meanwhile does not take the selection away.
    let first = nodes.nodes().first().context("no node")?;
    first.set_health(0, ServiceHealth::Unhealthy).await;
    reads(&browser, By::Id("attention"), "sim-00000").await?;
    reads(&browser, By::Id("picked"), "2 nodes selected").await?;
    press(&browser, "" + Key::Escape).await?;
    until_async("the bar to go", SOON, async || {
        Ok((!browser.find(By::Id("selection")).await?.is_displayed().await?).then_some(()))
    })
    .await?;

    // All of those that match, the keys alone.
    press(&browser, "/").await?;
    press(&browser, "zeta").await?;
    reads(&browser, By::Id("shown"), "12 of 24").await?;
    ensure!(was_not_loaded_again(&browser).await?, "the list was loaded again");
    press(&browser, "" + Key::Escape).await?;
    browser.find(By::Tag("body")).await?.send_keys("a").await?;
    reads(&browser, By::Id("picked"), "All that match").await?;
    browser.find(By::Tag("body")).await?.send_keys("d").await?;
    press(&browser, "Hand over").await?;
    press(&browser, "" + Key::Tab).await?;
    press(&browser, "" + Key::Return).await?;
    reads(&browser, By::Tag("h1"), "hand over all telemetry that is held on 12 nodes?").await?;
    reads(&browser, By::Id("of-whom"), "Of zeta").await?;
    fits(&browser, "selection-confirm").await?;
    // What has a long name is no wider than a phone.
    let long = "return document.querySelector('form.form button').append(' on-a-node-of-a-long-name'.repeat(9))";
    browser.execute(long, vec![]).await?;
    fits(&browser, "selection-long").await?;
    press(&browser, "before the move").await?;
    press(&browser, "" + Key::Return).await?;
    reads(&browser, By::Id("request-head"), "before the move").await?;
    mark(&browser).await?;
    reads(&browser, By::Id("request-head"), "12 of 12 done").await?;
    fits(&browser, "request").await?;

    // One who is away is waited for, and the page tells when it has come.
    let last = nodes.nodes().last().context("no node")?;
    last.set_there(false);
    browser.goto(format!("{base}/tenants/zeta?q=sim-0002")).await?;
    reads(&browser, By::Id("rows"), "signed off").await?;
    browser.find(By::Tag("body")).await?.send_keys("a").await?;
    browser.find(By::Tag("body")).await?.send_keys("d").await?;
    press(&browser, "Renew").await?;
    press(&browser, "" + Key::Tab).await?;
    press(&browser, "" + Key::Return).await?;
    reads(&browser, By::Tag("h1"), "renew").await?;
    reads(&browser, By::Id("main"), "no session now").await?;
    press(&browser, "it is time").await?;
    press(&browser, "" + Key::Return).await?;
    reads(&browser, By::Id("request-head"), "1 of 2 done, 1 under way").await?;
    mark(&browser).await?;
    fits(&browser, "request-open").await?;
    last.set_there(true);
    reads(&browser, By::Id("request-head"), "2 of 2 done").await?;
    ensure!(was_not_loaded_again(&browser).await?, "the request's page was loaded again");
    nodes.stop(SOON).await;
    browser.quit().await
}
