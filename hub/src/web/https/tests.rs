//! Renewal, good and bad, without a network.

use std::path::Path;

use pki::{Authority, PrivateKey};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// Leaves a pair for `hub.example` as an ACME client does, issued at `now`.
fn issue(directory: &Path, now: Timestamp) -> String {
    let names = ["hub.example".parse().expect("a name")];
    let authority = Authority::create_web(&names, now).expect("an authority");
    let key = PrivateKey::generate().expect("a key");
    let leaf = authority.issue_web_server(&key.public_key(), &names, now).expect("a certificate");
    let certificate = pem::certificates([&leaf.into(), authority.certificate_der()]);
    std::fs::write(directory.join("fullchain.pem"), &certificate).expect("written");
    std::fs::write(directory.join("key.pem"), key.to_pem()).expect("written");
    certificate
}

async fn open(config: &Config, now: Timestamp) -> anyhow::Result<Https> {
    let database = store::Database::open(&config.database_url()).await?;
    database.migrate(crate::schema::MIGRATIONS).await?;
    let keys = crate::keys::Keys::open(&database, &config.master(), now).await?;
    let authorities = Authorities::open(database, keys, now).await?;
    Ok(Https::open(config, &authorities, now).await?.expect("HTTPS"))
}

fn files(directory: &Path) -> Config {
    Config {
        state_dir: directory.to_owned(),
        http_certificate: Some(directory.join("fullchain.pem")),
        http_key: Some(directory.join("key.pem")),
        ..Config::default()
    }
}

fn start() -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000)
}

#[tokio::test]
async fn a_renewed_pair_is_used_at_the_next_look_and_a_bad_one_never() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    issue(directory.path(), start());
    let mut https = open(&files(directory.path()), start()).await?;
    let end = |https: &Https| https.shown.current().not_after();
    let first = end(&https);
    assert!(https.look(false, start().plus(DAY)).await);
    assert_eq!(end(&https), first, "nothing has changed");

    let certificate = issue(directory.path(), start().plus(DAY * 60));
    // Half written: the certificate is there, its key is not yet.
    let key = std::fs::read(directory.path().join("key.pem"))?;
    std::fs::write(directory.path().join("key.pem"), PrivateKey::generate()?.to_pem())?;
    https.look(false, start().plus(DAY * 61)).await;
    assert_eq!(end(&https), first, "another key");
    std::fs::write(directory.path().join("key.pem"), &key)?;
    https.look(false, start().plus(DAY * 61)).await;
    let second = start().plus(DAY * 150);
    assert_eq!(end(&https), second);

    let now = start().plus(DAY * 100);
    issue(directory.path(), start().minus(DAY * 100));
    https.look(true, now).await;
    assert_eq!(end(&https), second, "expired");
    issue(directory.path(), start().plus(DAY * 300));
    https.look(true, now).await;
    assert_eq!(end(&https), second, "not valid yet");
    std::fs::write(directory.path().join("fullchain.pem"), &certificate[..certificate.len() / 3])?;
    https.look(true, now).await;
    assert_eq!(end(&https), second, "cut short");
    std::fs::remove_file(directory.path().join("fullchain.pem"))?;
    https.look(true, now).await;
    assert_eq!(end(&https), second, "gone");

    issue(directory.path(), now);
    https.look(false, now).await;
    assert_eq!(end(&https), now.plus(DAY * 90));
    Ok(())
}

#[tokio::test]
async fn changed_files_are_noticed_by_themselves() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let now = crate::hub::now();
    issue(directory.path(), now);
    let https = open(&files(directory.path()), now).await?;
    tokio::time::pause();
    let (shown, metrics) = (https.shown().clone(), Arc::new(Metrics::new()?));
    let stop = CancellationToken::new();
    let mut keeping = tokio::task::JoinSet::new();
    keeping.spawn(https.keep(Arc::default(), Arc::clone(&metrics), stop.clone()));
    let renewed = now.plus(Duration::from_secs(300));
    issue(directory.path(), renewed);
    // Twice, so that the first look is certainly over.
    tokio::time::sleep(LOOK * 2).await;
    let end = renewed.plus(DAY * 90).seconds();
    assert_eq!(shown.current().not_after().seconds(), end);
    assert_eq!(metrics.https_certificate_end.get(), end);
    stop.cancel();
    keeping.join_all().await;
    Ok(())
}

#[tokio::test]
async fn an_expired_pair_keeps_no_hub_from_starting_and_an_unusable_one_does() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    issue(directory.path(), start().minus(DAY * 200));
    open(&files(directory.path()), start()).await?;
    let refused = async |says: &str| {
        let error = open(&files(directory.path()), start()).await.err().expect(says);
        assert!(error.downcast_ref::<PairError>().is_some(), "{error:#}");
        assert!(format!("{error:#}").contains(says), "{error:#}");
    };
    std::fs::write(directory.path().join("key.pem"), PrivateKey::generate()?.to_pem())?;
    refused("the private key is not that of the certificate").await;
    std::fs::remove_file(directory.path().join("key.pem"))?;
    refused("http-key can't be read from").await;
    Ok(())
}

#[tokio::test]
async fn the_hubs_own_certificate_is_renewed_under_the_same_authority() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let config = Config {
        state_dir: directory.path().to_owned(),
        http_tls: Some(crate::config::HttpTls::Own),
        public_url: Some("https://hub.example".into()),
        ..Config::default()
    };
    let mut https = open(&config, start()).await?;
    let authority = async |https: &Https| {
        let Source::Own { authorities, names } = &https.source else { bail!("not its own") };
        Ok(web::fingerprint(authorities.web(names, start()).await?.certificate_der()))
    };
    let first = authority(&https).await?;
    assert_eq!(https.shown.current().names(), ["hub.example", "127.0.0.1", "localhost", "::1"]);
    https.look(false, start().plus(DAY * 59)).await;
    assert_eq!(https.shown.current().not_after(), start().plus(DAY * 90));
    https.look(false, start().plus(DAY * 61)).await;
    assert_eq!(https.shown.current().not_after(), start().plus(DAY * 151));
    assert_eq!(authority(&https).await?, first);
    Ok(())
}

#[test]
fn the_address_people_are_given_is_one_the_certificate_is_for() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    issue(directory.path(), start());
    let pair = Pair { certificate: directory.path().join("fullchain.pem"), key: directory.path().join("key.pem") };
    let certificate = pair.parse(&pair.contents()?)?;
    let base = |config: &Config, certificate| base_url(config, "0.0.0.0:7080".parse()?, certificate);
    let config = Config::default();
    assert_eq!(base(&config, None)?, "http://127.0.0.1:7080");
    assert_eq!(base(&config, Some(&certificate))?, "https://hub.example:7080");
    let config = Config { public_url: Some("https://fleet.example/".into()), ..config };
    assert_eq!(base(&config, Some(&certificate))?, "https://fleet.example");
    Ok(())
}
