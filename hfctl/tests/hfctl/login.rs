//! Which hub is asked, whom it trusts, and whom the hub trusts.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use hub::config::{Config, HttpTls};
use hub::web::HttpAuthority;

use crate::site::{Done, Site};

#[test]
fn a_login_is_tried_stored_for_this_user_alone_and_used() {
    let site = Site::start();
    site.run(&["tenant", "list"]).fails(2, &["no hub is known", "hfctl login"]);
    assert!(site.login(&site.admin).ok().contains("logged in"));
    let mode = std::fs::metadata(site.login_file()).expect("stored").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(site.run(&["tenant", "create", "acme", "--name", "Acme GmbH"]).ok().contains("made tenant acme"));
    let listed = site.run(&["tenant", "list"]).ok();
    let mut lines = listed.lines();
    assert!(lines.next().expect("heads").starts_with("ID    NAME       NODES"));
    assert!(lines.next().expect("a row").starts_with("acme  Acme GmbH  0"));
    // Another login replaces it whole.
    site.login(&site.viewer).ok();
    site.run(&["tenant", "create", "zeta"]).fails(3, &["takes the role admin"]);
}

#[test]
fn a_login_that_does_not_work_is_not_stored() {
    let site = Site::start();
    let (most, last) = site.admin.split_at(site.admin.len() - 1);
    let other = format!("{most}{}", if last == "A" { "E" } else { "A" });
    site.login(&other).fails(3, &["does not take the token", "hfctl login"]);
    site.login("hfj_abc").fails(2, &["this is a join token"]);
    site.login("").fails(2, &["nothing was given"]);
    site.run(&["login", "--url", "hub.example", "--token-file", "/nowhere"]).fails(2, &["cannot read the token"]);
    site.run(&["login", "--url", &site.url, "--token", &site.admin]).fails(2, &["unexpected argument '--token'"]);
    assert!(!site.login_file().exists());
}

/// A hub that speaks HTTPS with a certificate of its own.
fn own() -> (Site, HttpAuthority) {
    let mut site = Site::configured(Config { http_tls: Some(HttpTls::Own), ..Config::default() });
    let authority = site.authority.take().expect("an authority");
    assert!(site.url.starts_with("https://"), "{}", site.url);
    (site, authority)
}

#[test]
fn a_hubs_own_certificate_is_trusted_once_its_fingerprint_was_given() {
    let (site, authority) = own();
    site.login(&site.admin).fails(1, &["is not trusted", "--fingerprint", "http-authority"]);
    assert!(site.login_with(&site.admin, &["--fingerprint", &authority.fingerprint]).ok().contains("logged in"));
    site.run(&["tenant", "create", "acme"]).ok();
    assert!(site.run(&["tenant", "list"]).ok().contains("acme"));
    // Another login that does not work takes nothing away.
    site.login_with("hft_x", &["--fingerprint", &authority.fingerprint]).fails(3, &["does not take the token"]);
    site.run(&["tenant", "list"]).ok();
}

#[test]
fn a_hubs_own_certificate_is_trusted_by_a_file() {
    let (site, authority) = own();
    let file = site.home.path().join("authority.pem");
    std::fs::write(&file, &authority.pem).expect("written");
    site.login_with(&site.admin, &["--ca-file", file.to_str().expect("text")]).ok();
    site.run(&["tenant", "list"]).ok();
}

#[test]
fn another_fingerprint_is_never_trusted_and_gets_no_token() {
    let (site, authority) = own();
    let (other, others) = own();
    site.login_with(&site.admin, &["--fingerprint", &others.fingerprint])
        .fails(1, &["no authority with this fingerprint"]);
    site.login_with(&site.admin, &["--fingerprint", "AB:CD"]).fails(2, &["64 hexadecimal digits"]);
    let both = ["--fingerprint", &authority.fingerprint, "--ca-file", "x"];
    site.login_with(&site.admin, &both).fails(2, &["cannot be used with"]);
    let plain = Site::start();
    plain.login_with(&plain.admin, &["--fingerprint", &authority.fingerprint]).fails(2, &["not the https address"]);
    let http = site.url.replace("https:", "http:");
    site.with(&http, &site.admin, &["tenant", "list"]).fails(2, &["speaks HTTPS", &site.url]);
    drop(other);
    assert!(!site.login_file().exists());
}

#[test]
fn the_quickstarts_hub_is_asked_without_a_login() {
    let site = Site::start();
    let directory = site.home.path().join(".local/state/hyperfactory/quickstart");
    std::fs::create_dir_all(&directory).expect("a directory");
    let text = format!("url = \"{}\"\ntoken = \"{}\"\n", site.url, site.admin);
    std::fs::write(directory.join("hfctl.toml"), text).expect("written");
    site.run(&["tenant", "create", "demo"]).ok();
    assert!(site.run(&["tenant", "list"]).ok().contains("demo"));
}

#[test]
fn a_stored_token_goes_to_no_other_hub() {
    let site = Site::start();
    site.login(&site.admin).ok();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = format!("http://{}", listener.local_addr().expect("an address"));
    let mut command = site.command(&["tenant", "list"]);
    let done: Done = command.env("HYPERFACTORY_HFCTL_URL", &other).output().expect("it runs").into();
    done.fails(2, &["the stored token is for", "HYPERFACTORY_HFCTL_TOKEN"]);
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "nobody came");
    // The same hub by the environment, and its token by a file.
    let file = site.home.path().join("token");
    std::fs::write(&file, format!("{}\n", site.viewer)).expect("written");
    let mut command = site.command(&["tenant", "list"]);
    command.env("HYPERFACTORY_HFCTL_URL", format!("{}/", site.url)).env("HYPERFACTORY_HFCTL_TOKEN_FILE", &file);
    Done::from(command.output().expect("it runs")).ok();
}

#[test]
fn what_is_wrong_with_the_hub_or_the_way_to_it_is_said() {
    let site = Site::start();
    let list = ["node", "list"];
    site.with("http://127.0.0.1:9", &site.admin, &list).fails(1, &["nothing listens", "hyperfactory-hub serve"]);
    site.with("http://nowhere.invalid", &site.admin, &list).fails(1, &["nowhere.invalid", "check the address"]);
    site.with("hub.example", &site.admin, &list).fails(2, &["starts with https:// or http://"]);
    site.with("http://a b", &site.admin, &list).fails(2, &["is not the address of a hub"]);
    let unknown = format!("hft_{}", "A".repeat(43));
    site.with(&site.url, &unknown, &list).fails(3, &["make a new one. Then run hfctl login."]);
    site.with(&site.url, "hunter2", &list).fails(2, &["not an API token"]);
    site.with(&format!("{}/sub", site.url), &site.admin, &list).fails(1, &["not as a Hyperfactory hub does"]);
    let https = site.url.replace("http:", "https:");
    site.with(&https, &site.admin, &list).fails(1, &["does not speak HTTPS"]);
}

#[test]
fn a_configuration_with_a_misspelt_key_is_refused() {
    let site = Site::start();
    let file = site.home.path().join("my.toml");
    std::fs::write(&file, "ulr = \"http://127.0.0.1:1\"\n").expect("written");
    let path = file.to_str().expect("text");
    site.run(&["--config", path, "node", "list"]).fails(2, &["ulr", "url", path]);
    site.run(&["--config", "/nowhere.toml", "node", "list"]).fails(2, &["/nowhere.toml"]);
    let mut command = site.command(&["node", "list"]);
    command.env("HYPERFACTORY_HFCTL_TOKNE", "x");
    Done::from(command.output().expect("it runs")).fails(2, &["HYPERFACTORY_HFCTL_TOKNE"]);
}
