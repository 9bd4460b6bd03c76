//! HTTPS as it is run: a certificate that somebody else renews, and one of the hub's own for a person with `hfctl`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Hub, SOON, binary, until};
use rustix::process::Signal;

fn openssl(directory: &Path, arguments: &[&str]) -> Result<Output> {
    let output = Command::new("openssl").args(arguments).current_dir(directory).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// An authority outside of the fleet, as files in `directory`.
fn make_authority(directory: &Path) -> Result<()> {
    let key = ["-newkey", "rsa:2048", "-noenc", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(directory, &[&["req", "-x509", "-subj", "/CN=Somebody", "-days", "2"][..], &key].concat()).map(drop)
}

/// What an ACME client does: a new key, a new certificate of `localhost`, and the chain. Gives the fingerprint.
fn renew(directory: &Path) -> Result<String> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", "new.key"];
    openssl(directory, &[&["req", "-new", "-subj", "/CN=localhost", "-out", "new.csr"][..], &key].concat())?;
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
    let by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names"];
    openssl(directory, &[&["x509", "-req", "-in", "new.csr", "-out", "new.pem"][..], &by].concat())?;
    let chain = [std::fs::read(directory.join("new.pem"))?, std::fs::read(directory.join("ca.pem"))?].concat();
    std::fs::write(directory.join("fullchain.pem"), chain)?;
    std::fs::rename(directory.join("new.key"), directory.join("key.pem"))?;
    fingerprint(directory, &std::fs::read(directory.join("new.pem"))?)
}

fn fingerprint(directory: &Path, pem: &[u8]) -> Result<String> {
    std::fs::write(directory.join("looked-at.pem"), pem)?;
    let said = openssl(directory, &["x509", "-in", "looked-at.pem", "-noout", "-fingerprint", "-sha256"])?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}

/// The fingerprint of what the hub shows now to a client that believes the authority.
fn shown(hub: &Hub, directory: &Path) -> Result<String> {
    let place = hub.endpoints().http.strip_prefix("https://").context("not HTTPS")?;
    let verified = ["-CAfile", "ca.pem", "-verify_return_error", "-verify_hostname", "localhost"];
    let said = openssl(directory, &[&["s_client", "-connect", place][..], &verified].concat())?;
    fingerprint(directory, &said.stdout)
}

#[test]
fn a_renewed_certificate_is_taken_up_at_a_signal_and_a_wrong_one_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let files = directory.path();
    make_authority(files)?;
    let first = renew(files)?;
    let path = |name: &str| files.join(name).display().to_string();
    let builder = Hub::builder().set("http-certificate", path("fullchain.pem")).set("http-key", path("key.pem"));
    let mut hub = builder.start()?;
    assert_eq!(shown(&hub, files)?, first);
    assert!(hub.sign_in_link()?.starts_with(&format!("{}/sign-in", hub.endpoints().http)));

    let second = renew(files)?;
    assert_eq!(shown(&hub, files)?, first);
    hub.process()?.signal(Signal::HUP)?;
    until("the renewed certificate", SOON, || Ok((shown(&hub, files)? == second).then_some(())))?;

    openssl(files, &["genpkey", "-algorithm", "ED25519", "-out", "key.pem"])?;
    hub.process()?.signal(Signal::HUP)?;
    until("the refusal", SOON, || Ok(hub.process()?.log().contains("the one before stays in use").then_some(())))?;
    let log = hub.process()?.log();
    ensure!(log.contains("the private key is not that of the certificate"), "{log}");
    assert_eq!(shown(&hub, files)?, second);
    let checked = hub.attempt(&["check"])?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(said.contains("FAIL  https") && said.contains("is not that of the certificate"), "{said}");

    // A hub that starts has none before to go by.
    hub.stop()?;
    let started = hub.attempt(&["serve"])?;
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    ensure!(started.status.code() == Some(2) && said.contains("is not that of the certificate"), "{said}");
    renew(files)?;
    hub.restart()
}

#[test]
fn a_person_gets_to_a_hub_with_its_own_certificate_by_what_it_prints() -> Result<()> {
    let hub = Hub::builder().set("http-tls", "own").start()?;
    let home = tempfile::tempdir()?;
    let made = hub.attempt(&["api-token"])?;
    std::fs::write(home.path().join("token"), &made.stdout)?;
    let said = String::from_utf8(made.stderr)?;
    let command = said.split_once("use it with: hfctl ").with_context(|| format!("no command in: {said}"))?.1;
    let hfctl = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(binary("hfctl")?);
        let output = command.args(arguments).env_clear().env("HOME", home.path()).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let token = home.path().join("token").display().to_string();
    let login: Vec<&str> = command.split_ascii_whitespace().chain(["--token-file", &token]).collect();
    hfctl(&login)?;
    hfctl(&["tenant", "create", "acme"])?;
    ensure!(hfctl(&["tenant", "list"])?.contains("acme"));
    Ok(())
}
