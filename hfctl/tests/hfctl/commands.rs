//! Asking nodes for something, at once or in waves.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::site::Site;

#[test]
fn a_rollout_says_who_is_meant_before_it_asks_and_has_a_reason() {
    let site = Site::start();
    let start = |more: &[&str]| {
        let mut arguments = vec!["rollout", "start", "drain", "--all", "--reason", "a test"];
        arguments.extend(more);
        site.admin(&arguments)
    };
    let preview = start(&["--dry-run"]);
    assert!(preview.code == 0 && preview.err.contains("on 0 nodes, in 0 waves"), "{preview:?}");
    start(&[]).fails(2, &["no node is meant", "hfctl node list"]);
    start(&["--yes"]).fails(2, &["no node is meant"]);
    start(&["--yes", "--waves", "1,50%"]).fails(2, &["the last wave"]);
    site.admin(&["rollout", "start", "drain", "--all"]).fails(2, &["--reason"]);
    site.admin(&["rollout", "show", "7"]).fails(1, &["there is no rollout 7"]);
    site.admin(&["rollout", "abort", "7", "--reason", "a test"]).fails(1, &["there is no rollout 7"]);
    let none = site.admin(&["rollout", "list"]);
    assert!(none.code == 0 && none.err.contains("no rollouts"), "{none:?}");
}

#[test]
fn a_command_whose_answer_is_lost_is_done_once_and_said_to_be_possible() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    site.node("acme", "press");
    let send = ["command", "send", "drain", "--all", "--yes", "--reason", "a test"];
    let commands = || site.admin(&["command", "list"]).ok().lines().filter(|line| line.contains("press")).count();
    site.with(&losing(&site.url, 1), &site.admin, &send).ok();
    assert_eq!(commands(), 1);
    site.with(&losing(&site.url, 2), &site.admin, &send).fails(1, &["may have been asked for", "hfctl command list"]);
    assert_eq!(commands(), 2);
    let rollout = ["rollout", "start", "drain", "--all", "--yes", "--reason", "a test"];
    site.with(&losing(&site.url, 2), &site.admin, &rollout)
        .fails(1, &["may have been asked for", "hfctl rollout list"]);
    assert_eq!(site.admin(&["rollout", "list"]).ok().lines().filter(|line| line.contains("operator:admin")).count(), 1);
}

#[test]
fn a_whole_request_is_taken_back() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    site.node("acme", "press");
    site.node("acme", "mill");
    let sent = site.admin(&["command", "send", "drain", "--all", "--yes", "--reason", "a test"]);
    let request = sent.err.split("--request ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an id");
    let cancel = ["command", "cancel", "--request", request, "--reason", "not now"];
    let said = site.admin(&cancel).ok();
    assert_eq!(said.trim(), "2 commands are cancelled");
    let again = site.admin(&cancel);
    assert!(again.code == 0 && again.err.contains("nothing was taken back"), "{again:?}");
    let listed = site.admin(&["command", "list", "--state", "cancelled"]).ok();
    assert_eq!(listed.matches("taken back: not now").count(), 2, "{listed}");
}

#[test]
fn nothing_is_signed_for_nodes_that_a_hub_adds_to_those_that_were_named() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    for name in ["press", "mill"] {
        site.node("acme", name);
    }
    let nodes: Value = serde_json::from_str(&site.admin(&["-o", "json", "node", "list"]).ok()).expect("JSON");
    let id = |name: &str| {
        let node = nodes.as_array().into_iter().flatten().find(|node| node["name"] == name);
        node.and_then(|node| node["id"].as_str()).expect("a node").to_owned()
    };
    let key = site.home.path().join("key");
    let key = key.to_str().expect("text");
    site.admin(&["operator-key", "create", key]).ok();
    site.admin(&["operator-key", "register", key, "--name", "ann", "--reason", "on call"]).ok();
    let send = |url: &str, which: &[&str]| {
        let mut arguments = vec!["command", "send", "drain", "--reason", "a test", "--sign-with", key];
        arguments.extend(which);
        site.with(url, &site.admin, &arguments)
    };
    let commands = || site.admin(&["command", "list"]).ok().lines().filter(|line| line.contains("queued")).count();
    let url = adding(&site.url, id("mill"));
    for named in ["press".to_owned(), id("press")] {
        send(&url, &["--node", &named])
            .fails(1, &["nothing was signed", &format!("{} (mill of acme) was not named", id("mill"))]);
    }
    // Nobody can be asked here, and without an answer nothing is signed for whom the hub has chosen.
    let chosen = send(&site.url, &["--tenant", "acme"]);
    for said in [format!("{}  press of acme", id("press")), format!("{}  mill of acme", id("mill"))] {
        assert!(chosen.err.contains(&said), "{said}: {chosen:?}");
    }
    chosen.fails(2, &["to be signed", "nobody can be asked"]);
    assert_eq!(commands(), 0);
    let signed = send(&site.url, &["--node", "press"]);
    assert!(
        signed.err.contains(&format!(
            "to be signed: hand over all telemetry that is held on 1 node\n  {}  press of acme",
            id("press")
        )),
        "{signed:?}"
    );
    signed.ok();
    send(&site.url, &["--all", "--yes"]).ok();
    assert_eq!(commands(), 3);
}

#[test]
fn what_is_asked_for_is_what_the_preview_has_shown() {
    let site = Site::start();
    site.admin(&["tenant", "create", "acme"]).ok();
    site.node("acme", "press");
    // What a preview shows is no more when it is asked for.
    let url = between(&site.url, |_, answer| {
        let text = String::from_utf8(answer).expect("text");
        let other = text.split_once("\"digest\":\"").map(|(before, rest)| {
            format!("{before}\"digest\":\"{}{}", "0".repeat(64), rest.get(64..).expect("a digest"))
        });
        Some(other.unwrap_or(text).into_bytes())
    });
    for verb in [["command", "send"], ["rollout", "start"]] {
        let arguments = [&verb[..], &["drain", "--all", "--yes", "--reason", "a test"]].concat();
        site.with(&url, &site.admin, &arguments).fails(1, &["look at it again", "Nothing was done"]);
        site.admin(&arguments).ok();
    }
}

/// The address of a way to a hub, on which the first `count` answers to what is sent under a key are lost.
fn losing(url: &str, mut count: usize) -> String {
    between(url, move |head, answer| {
        let lost = head.contains("\r\nidempotency-key:") && count > 0;
        count -= usize::from(lost);
        (!lost).then_some(answer)
    })
}

/// The address of a way to a hub, on which previews of commands are for `node` as well.
fn adding(url: &str, node: String) -> String {
    between(url, move |head, answer| {
        if !head.starts_with("post /api/v1/commands/preview ") {
            return Some(answer);
        }
        let answer = String::from_utf8(answer).expect("text");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let mut preview: Value = serde_json::from_str(body).expect("JSON");
        let commands = preview["commands"].as_array_mut().expect("commands");
        commands.push(json!({ "id": node, "node": node, "name": "mill", "tenant": "acme", "online": true }));
        let body = preview.to_string();
        Some(
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                .into_bytes(),
        )
    })
}

/// The address of a way to a hub, on which `change` makes of each answer what is given back: it has the request's head in small
/// letters, and the answer.
fn between(url: &str, mut change: impl FnMut(&str, Vec<u8>) -> Option<Vec<u8>> + Send + 'static) -> String {
    let hub = url.strip_prefix("http://").expect("an address").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = BufReader::new(client.expect("a connection"));
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") && client.read_line(&mut head).expect("a line") > 0 {
                let line = head.trim_end().rsplit('\n').next().unwrap_or_default().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            client.read_exact(&mut body).expect("a body");
            let mut to_hub = TcpStream::connect(&hub).expect("a connection");
            let once = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            to_hub.write_all(&[once.as_bytes(), &body].concat()).expect("sent");
            let mut answer = Vec::new();
            to_hub.read_to_end(&mut answer).expect("an answer");
            if let Some(answer) = change(&head.to_ascii_lowercase(), answer) {
                client.get_mut().write_all(&answer).expect("answered");
            }
        }
    });
    address
}
