//! `hfctl` as people run it, against a hub that runs.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it does not expect has failed")]

mod commands;
mod login;
mod site;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;

use site::{Done, Site};

#[test]
fn certificate_policy_is_shown_set_and_taken_back() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let line = |shown: &str, kind: &str| {
        let line = shown.lines().find(|line| line.starts_with(&format!("{kind} "))).expect("the kind");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let shown = site.admin(&["policy", "show"]).ok();
    assert!(line(&shown, "bridge").starts_with("bridge 90d 57-77 % default"), "{shown}");
    let set = site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "36h", "--renew", "40-60"]).ok();
    assert!(set.contains("agent: 36h, renewed at 40-60 %"), "{set}");
    // What is not said stays as it is.
    let set = site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "2d"]).ok();
    assert!(set.contains("agent: 2d, renewed at 40-60 %"), "{set}");
    let shown = site.admin(&["policy", "show", "--tenant", "acme"]).ok();
    assert!(
        line(&shown, "agent").starts_with("agent 2d 40-60 % tenant") && shown.contains("operator:admin"),
        "{shown}"
    );
    assert!(site.admin(&["policy", "reset", "agent", "--tenant", "acme"]).ok().contains("7d, renewed at 57-77 %"));
    site.admin(&["policy", "set", "bridge", "--lifetime", "300d"]).fails(2, &["its issuer, nodes-intermediate"]);
    site.admin(&["policy", "set", "agent"]).fails(2, &["say what to set"]);
    site.admin(&["policy", "set", "agent", "--renew", "57"]).fails(2, &["such as 57-77"]);
    site.with(&site.url, &site.viewer, &["policy", "reset", "agent"]).fails(3, &["takes the role admin"]);
}

#[test]
fn what_is_advised_after_a_reset_sets_nothing_anew() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "30d"]).ok();
    site.node("acme", "press");
    let policy = || {
        let shown = site.admin(&["policy", "show", "--tenant", "acme"]).ok();
        shown.lines().find(|line| line.starts_with("agent ")).expect("the kind").to_owned()
    };
    let reset = site.admin(&["policy", "reset", "agent", "--tenant", "acme"]);
    let before = policy();
    let (said, command) = reset.err.trim_end().split_once(": hfctl ").expect("a command");
    assert!(said.contains("1 nodes have certificates that end later"), "{reset:?}");
    let words: Vec<&str> = command.split('"').collect();
    let [options, reason, ""] = words.as_slice() else { panic!("{command}") };
    let mut arguments: Vec<&str> = options.split_whitespace().collect();
    arguments.push(reason);
    assert!(site.admin(&arguments).ok().starts_with("1 nodes renew their certificates until"), "{command}");
    assert_eq!(policy(), before);
    // After a set, it may be set again.
    let set = site.admin(&["policy", "set", "agent", "--tenant", "acme", "--lifetime", "2d"]);
    assert!(set.err.contains("hfctl policy set agent --tenant acme --renew-within 6h"), "{set:?}");
}

#[test]
fn a_mass_renewal_says_how_many_nodes_it_is_for() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let told = site.admin(&["cert", "renew", "--tenant", "acme", "--within", "6h", "--reason", "drill"]).ok();
    assert!(told.starts_with("0 nodes renew their certificates until 20"), "{told}");
    site.admin(&["cert", "renew", "--within", "6h"]).fails(2, &["--tenant", "--node", "--all"]);
    site.admin(&["cert", "renew", "--all", "--tenant", "acme", "--within", "6h"]).fails(2, &["cannot be used with"]);
    site.admin(&["cert", "renew", "--node", "press", "--within", "6h"]).fails(1, &["there is no node"]);
    site.admin(&["cert", "renew", "--all", "--within", "100d"]).fails(2, &["at most 90 days"]);
}

#[test]
fn a_token_makes_the_command_that_enrolls_a_node() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let made = site.admin(&["token", "create", "--tenant", "acme", "--name", "press", "--valid-for", "15m"]);
    assert!(made.err.contains("run this on the new node"), "{made:?}");
    let command = made.ok();
    assert!(command.starts_with("sudo hyperfactory-agent enroll --token hfj_") && command.lines().count() == 1);
    let json = site.admin(&["-o", "json", "token", "create", "--tenant", "acme", "--kind", "bridge"]).ok();
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["command"].as_str().is_some_and(|command| command.contains("hyperfactory-bridge")));
    let listed = site.admin(&["token", "list"]).ok();
    assert!(listed.contains("press") && !listed.contains("hfj_"));
    site.admin(&["token", "create", "--tenant", "nobody"]).fails(1, &["there is no tenant nobody"]);
    site.admin(&["token", "create", "--tenant", "acme", "--valid-for", "90d"]).fails(2, &["1 minute to 30 days"]);
    site.admin(&["token", "create", "--tenant", "acme", "--valid-for", "soon"]).fails(2, &["--valid-for"]);
    site.with(&site.url, &site.viewer, &["token", "create", "--tenant", "acme"]).fails(3, &["takes the role operator"]);
}

#[test]
fn empty_lists_say_what_to_do_and_are_still_json_for_programs() {
    let site = Site::start();
    for (verb, hint) in [("tenant", "hfctl tenant create"), ("node", "hfctl token create"), ("alert", "no open alerts")]
    {
        let listed = site.admin(&[verb, "list"]);
        assert!(listed.err.contains(hint), "{listed:?}");
        assert_eq!(listed.ok(), "");
        assert_eq!(site.admin(&[verb, "list", "--output", "json"]).ok(), "[]\n");
    }
    site.admin(&["node", "show", "press"]).fails(1, &["there is no node \"press\""]);
    site.admin(&["node", "show", "019ab0c2-7f00-7000-8000-000000000000"]).fails(1, &["There is no node"]);
    site.admin(&["node", "list", "--state", "broken"]).fails(2, &["possible values", "never_seen"]);
    site.admin(&["tenant", "create", "Not An Id"]).fails(2, &["is not a tenant id"]);
}

#[test]
fn what_is_missing_is_said_in_the_words_it_can_be_given_in() {
    let site = Site::start();
    for (arguments, says) in [
        (
            &["command", "send", "service.restart", "--reason", "a test", "--all"][..],
            "service.restart needs --service STACK/SERVICE",
        ),
        (
            &["command", "send", "service.restart", "--reason", "a test", "--all", "--service", "web"],
            "name it STACK/SERVICE",
        ),
        (&["command", "send", "backup", "--reason", "a test", "--all"], "backup needs --service STACK"),
        (&["command", "send", "script", "--reason", "a test", "--all"], "script needs --script NAME"),
        (
            &["command", "send", "telemetry.interval", "--reason", "a test", "--all"],
            "telemetry.interval needs --interval PERIOD",
        ),
        (&["command", "send", "drain", "--reason", "a test"], "which nodes? name them with --node"),
        (&["command", "send", "drain", "--reason", "a test", "--node", "press", "--all"], "cannot be used with"),
        (&["command", "send", "drain", "--reason", "a test", "--all"], "no node is meant"),
        (&["command", "send", "drain", "--reason", "a test", "--all", "--valid-for", "soon"], "--valid-for"),
        (&["command", "cancel", "--reason", "a test"], "--request"),
        (&["command", "cancel", "7"], "--reason <WHY>"),
        (&["operator-key", "register", "key", "--name", "ann"], "--reason <WHY>"),
        (&["operator-key", "revoke", "7"], "--reason <WHY>"),
        (&["node", "label", "press", "ring=canary"], "--reason <WHY>"),
        (&["command", "send", "drain", "--node", "press"], "--reason <WHY>"),
        (&["service", "restart", "shop/web", "--node", "press"], "--reason <WHY>"),
        (&["command", "send", "drain", "--all", "--reason", " "], "say why, for the audit log"),
        (&["rollout", "start", "drain", "--reason", "a test"], "which nodes? name them with --node"),
        (&["rollout", "start", "script", "--all", "--reason", "a test"], "script needs --script NAME"),
        (&["rollout", "list", "--limit", "0"], "--limit"),
    ] {
        site.admin(arguments).fails(2, &[says]);
    }
    for (what, says) in
        [(&["nodes"][..], "say whose with --tenant"), (&["root", "--tenant", "acme"], "leave out --tenant")]
    {
        let mut arguments = vec!["ca", "rotate", "start", "--reason", "a test"];
        arguments.extend(what);
        site.admin(&arguments).fails(2, &[says]);
    }
    site.admin(&["command", "cancel", "--request", "nothing", "--reason", "a test"])
        .fails(1, &["there is no request \"nothing\""]);
}

#[test]
fn of_a_tenant_that_does_not_exist_no_list_is_empty() {
    let site = Site::start();
    for arguments in [
        &["alert", "list"][..],
        &["node", "list"],
        &["command", "list"],
        &["command", "send", "drain", "--reason", "a test", "--yes"],
        &["rollout", "start", "drain", "--reason", "a test", "--yes"],
        &["logs", "search", "pressure"],
        &["kafka", "access"],
        &["token", "list"],
        &["audit", "tail"],
        &["ca", "rotate", "start", "nodes", "--reason", "a test"],
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--tenant", "acmee"]);
        site.admin(&arguments).fails(1, &["there is no tenant acmee: see `hfctl tenant list`"]);
    }
}

#[test]
fn the_audit_log_is_followed() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    let tail = site.admin(&["audit", "tail", "-n", "1", "--action", "tenant.created"]).ok();
    assert!(tail.contains("operator:admin  tenant.created  acme"), "{tail}");

    let mut command = site.command(&["audit", "tail", "-f", "-o", "json", "--action", "tenant."]);
    command.env("HYPERFACTORY_HFCTL_URL", &site.url).env("HYPERFACTORY_HFCTL_TOKEN", &site.admin);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next =
        || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON on one line") };
    assert_eq!(next()["subject"], "acme");
    site.admin(&["tenant", "create", "zeta"]).ok();
    assert_eq!(next()["subject"], "zeta");
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn an_export_is_there_when_it_is_whole() {
    let site = Site::start();
    let file = site.home.path().join("audit.jsonl");
    let path = file.to_str().expect("text");
    site.admin(&["audit", "export", "--file", path]).ok();
    let lines = std::fs::read_to_string(&file).expect("written");
    let last: Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    let head = site.admin(&["audit", "head"]).ok();
    assert_eq!(
        head.trim(),
        format!("{}:{}", last["unmapped"]["id"], last["unmapped"]["hash"].as_str().expect("a hash"))
    );
    assert!(site.admin(&["audit", "export"]).ok().starts_with(&lines));
    site.with(&site.url, &site.viewer, &["audit", "export", "--file", path]).fails(3, &["takes the role admin"]);

    // A hub that dies in the middle of it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let dying = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut asked = BufReader::new(stream.try_clone().expect("a reader")).lines();
        while asked.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
        stream.write_all(begun.as_bytes()).expect("begun");
    });
    let other = site.home.path().join("other.jsonl");
    let path = other.to_str().expect("text");
    site.with(&url, &site.admin, &["audit", "export", "--file", path]).fails(1, &["broke off and is not whole"]);
    assert!(!other.exists());
    dying.join().expect("it served");
}

#[test]
fn a_certificate_is_shown_without_any_hub() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = std::time::SystemTime::now().into();
    let root = pki::Authority::create_root(now, pki::authority::ROOT_LIFETIME).expect("a root");
    let hub = root.issue_hub_intermediate(now, pki::authority::INTERMEDIATE_LIFETIME).expect("an intermediate");
    let key = pki::PrivateKey::generate().expect("a key");
    let leaf = pki::CertificateDer::from(hub.issue_hub_server(&key.public_key(), now).expect("a certificate"));
    let chain = [&leaf, hub.certificate_der(), root.certificate_der()];
    let show = |name: &str, bytes: &[u8], more: &[&str]| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hfctl"));
        Done::from(command.args(["cert", "show"]).arg(file).args(more).output().expect("hfctl"))
    };
    let shown = show("chain.pem", pki::pem::certificates(chain).as_bytes(), &[]).ok();
    for said in ["DNS:hub.hyperfactory.internal", "TLS server", "by the next one", "by itself", "no IP:0.0.0.0/0.0.0.0"]
    {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    let json = show("chain.pem", pki::pem::certificates([chain[2], chain[0]]).as_bytes(), &["-o", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[0]["signed_by_next"], &json[1]["signed_by_itself"]), (&false.into(), &false.into()), "{json}");
    assert!(show("leaf.der", &leaf, &[]).ok().contains("by none in this file"));
    show("no.pem", b"nothing", &[]).fails(2, &["holds no certificate", "PEM"]);
    show("no.der", &[0xff; 90], &[]).fails(2, &["can't be read"]);
}

#[test]
fn a_rotation_is_begun_stepped_and_taken_back_and_says_what_comes_next() {
    let site = Site::start();
    site.admin(&["ca", "rotate", "status"]).fails(1, &["no rotation is under way", "hfctl ca rotate start"]);
    let begun = site.admin(&["ca", "rotate", "start", "root", "--reason", "the old machine goes"]).ok();
    for part in [
        "of the fleet root",
        "the old machine goes",
        "trust: all are ready; hfctl ca rotate advance 1",
        "aborted: hfctl ca rotate back 1",
    ] {
        assert!(begun.contains(part), "{part}: {begun}");
    }
    site.admin(&["ca", "rotate", "start", "hub", "--reason", "at once"])
        .fails(1, &["is under way", "hfctl ca rotate status 1"]);
    assert!(site.admin(&["ca", "rotate", "advance"]).ok().contains("issue: all are ready"));
    assert!(site.admin(&["ca", "rotate", "list", "--open"]).ok().contains("the fleet root"));
    assert_eq!(site.admin(&["ca", "rotate", "missing"]).ok(), "", "all are ready");
    site.admin(&["ca", "rotate", "back"]).ok();
    let over = site.admin(&["--output", "json", "ca", "rotate", "back", "1"]).ok();
    let over: Value = serde_json::from_str(&over).expect("JSON");
    assert_eq!((over["phase"].as_str(), over.get("forward")), (Some("aborted"), None));
    site.admin(&["ca", "rotate", "advance", "1"]).fails(1, &["is over (aborted)"]);
    site.admin(&["ca", "rotate", "advance", "7"]).fails(1, &["there is no rotation 7"]);
    site.admin(&["ca", "rotate", "start", "nodes", "--reason", "whose"]).fails(2, &["say whose with --tenant"]);
    site.with(&site.url, &site.viewer, &["ca", "rotate", "start", "root", "--reason", "no"]).fails(3, &["role admin"]);
}
