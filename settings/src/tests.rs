//! What a person who writes a configuration gets, and is told.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Period, Secret, SettingsError, Size, load, load_from};

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Config {
    state_dir: PathBuf,
    database: Option<Secret>,
    interval: Period,
    mode: Mode,
    origins: Vec<String>,
    labels: BTreeMap<String, u8>,
    spool: Spool,
    http: Http,
    brokers: Vec<Broker>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Broker {
    token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Spool {
    capacity: Size,
    durable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Http {
    listen_address: Option<SocketAddr>,
    workers: Option<u16>,
    token: Secret,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    ReadOnly,
    Full,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Needy {
    #[serde(default)]
    name: String,
    hub: Inner,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inner {
    host_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/hyperfactory/hub".into(),
            database: None,
            interval: Period::seconds(10),
            mode: Mode::Full,
            origins: vec!["default".into()],
            labels: BTreeMap::new(),
            spool: Spool::default(),
            http: Http::default(),
            brokers: Vec::new(),
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self { capacity: Size::mebibytes(64), durable: true }
    }
}

/// A configuration directory with hub.toml in it, and an environment.
struct Place {
    directory: tempfile::TempDir,
    environment: Vec<(OsString, OsString)>,
}

impl Place {
    fn with(text: &str) -> Self {
        let place = Self::empty();
        std::fs::write(place.directory.path().join("hub.toml"), text).expect("written");
        place
    }

    fn empty() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), environment: Vec::new() }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn secret(self, name: &str, contents: &str) -> Self {
        let path = self.directory.path().join("secret");
        std::fs::write(&path, contents).expect("written");
        self.set(name, &path.display().to_string())
    }

    fn load(&self) -> Result<Config, SettingsError> {
        load_from(self.directory.path(), "hub", None, self.environment.clone())
    }

    /// What a person is told, without the directory's path.
    fn told(&self) -> String {
        self.clean(&self.load().expect_err("refused"))
    }

    fn clean(&self, error: &SettingsError) -> String {
        error.to_string().replace(&format!("{}/", self.directory.path().display()), "")
    }
}

#[test]
fn without_a_file_everything_has_its_default() {
    let config = Place::empty().load().expect("good");
    assert_eq!(config.spool.capacity, Size::mebibytes(64));
    assert_eq!(config.mode, Mode::Full);
}

#[test]
fn the_file_sets_keys_in_tables() {
    let config = Place::with(
        "state-dir = '/srv'\ninterval = '1m'\nmode = 'read-only'\norigins = ['a', 'b']\nlabels = { x = 1 }\n\
         [spool]\ncapacity = '1GiB'\ndurable = false\n[http]\nworkers = 3\nlisten-address = '[::1]:80'\ntoken = 'hunter2'\n",
    )
    .load()
    .expect("good");
    assert_eq!(config.state_dir, PathBuf::from("/srv"));
    assert_eq!(config.interval, Period::seconds(60));
    assert_eq!(config.mode, Mode::ReadOnly);
    assert_eq!(config.origins, ["a", "b"]);
    assert_eq!(config.labels, BTreeMap::from([("x".to_owned(), 1)]));
    assert_eq!((config.spool.capacity, config.spool.durable), (Size(1 << 30), false));
    assert_eq!((config.http.workers, config.http.token.expose()), (Some(3), "hunter2"));
    assert_eq!(config.http.listen_address.map(|address| address.port()), Some(80));
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = Place::with("mode = 'full'\norigins = ['a']\n[http]\nworkers = 3\n")
        .set("HYPERFACTORY_HUB_MODE", "read-only")
        .set("HYPERFACTORY_HUB_ORIGINS", "x, y")
        .set("HYPERFACTORY_HUB_LABELS", "{ x = 1 }")
        .set("HYPERFACTORY_HUB_HTTP_WORKERS", "5")
        .set("HYPERFACTORY_HUB_HTTP_LISTEN_ADDRESS", "127.0.0.1:7")
        .set("HYPERFACTORY_HUB_SPOOL_DURABLE", "false")
        .set("HYPERFACTORY_HUB_SPOOL_CAPACITY", "3MiB")
        .set("HYPERFACTORY_HUB_STATE_DIR", "")
        .set("HYPERFACTORY_AGENT_NONSENSE", "another binary's")
        .load()
        .expect("good");
    assert_eq!((config.mode, config.origins), (Mode::ReadOnly, vec!["x".to_owned(), "y".to_owned()]));
    assert_eq!(config.labels.get("x"), Some(&1));
    assert_eq!((config.http.workers, config.http.listen_address.map(|a| a.port())), (Some(5), Some(7)));
    assert_eq!((config.spool.durable, config.spool.capacity), (false, Size::mebibytes(3)));
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/hyperfactory/hub"), "an empty variable is not set");
}

#[test]
fn a_secret_can_be_in_a_file_of_its_own() {
    let config = Place::empty().secret("HYPERFACTORY_HUB_DATABASE_FILE", " postgres://x \n").load().expect("good");
    assert_eq!(config.database.as_ref().map(Secret::expose), Some("postgres://x"));
    assert!(!format!("{config:?}").contains("postgres"));

    let both = Place::empty().set("HYPERFACTORY_HUB_HTTP_TOKEN", "a").secret("HYPERFACTORY_HUB_HTTP_TOKEN_FILE", "b");
    assert_eq!(
        both.told(),
        "both HYPERFACTORY_HUB_HTTP_TOKEN and HYPERFACTORY_HUB_HTTP_TOKEN_FILE are set; unset one of them"
    );

    let gone = Place::empty().set("HYPERFACTORY_HUB_DATABASE_FILE", "/nonexistent/secret");
    assert_eq!(
        gone.told(),
        "cannot read /nonexistent/secret, which HYPERFACTORY_HUB_DATABASE_FILE names: check that it exists and is \
         readable by this user"
    );
    assert!(gone.load().expect_err("refused").source().is_some());

    let not_secret = Place::empty().secret("HYPERFACTORY_HUB_MODE_FILE", "full").told();
    assert!(not_secret.starts_with("there is no setting for the environment variable HYPERFACTORY_HUB_MODE_FILE"));
}

#[test]
fn a_misspelt_key_is_refused_with_its_line_and_the_nearest_key() {
    let cases = [
        ("\nmod = 'full'", "hub.toml:2: there is no key `mod`; did you mean `mode`?"),
        (
            "[spool]\n# a comment\ncapasity = '1MiB'",
            "hub.toml:3: there is no key `spool.capasity`; did you mean `spool.capacity`?",
        ),
        ("state_dir = '/x'", "hub.toml:1: there is no key `state_dir`; did you mean `state-dir`?"),
        ("capacity = '1MiB'", "hub.toml:1: there is no key `capacity`; did you mean `spool.capacity`?"),
        ("[htttp]\nworkers = 1", "hub.toml:1: there is no key `htttp`; remove it or check its spelling"),
        ("zebra = 1", "hub.toml:1: there is no key `zebra`; remove it or check its spelling"),
    ];
    for (text, told) in cases {
        assert_eq!(Place::with(text).told(), told, "{text}");
    }
}

#[test]
fn a_misspelt_variable_is_refused_with_the_nearest_one() {
    assert_eq!(
        Place::empty().set("HYPERFACTORY_HUB_SPOOL_CAPASITY", "1MiB").told(),
        "there is no setting for the environment variable HYPERFACTORY_HUB_SPOOL_CAPASITY; did you mean \
         `HYPERFACTORY_HUB_SPOOL_CAPACITY`?"
    );
    assert_eq!(
        Place::empty().set("HYPERFACTORY_HUB_ZEBRA", "1").told(),
        "there is no setting for the environment variable HYPERFACTORY_HUB_ZEBRA; unset it or check its spelling"
    );
}

#[test]
fn a_value_that_does_not_fit_is_refused_where_it_stands() {
    let cases = [
        (
            "\ninterval = 10",
            "hub.toml:2: `interval` is not usable: invalid type: integer `10`, expected a time with its unit, like \"10s\" or \"5m\"",
        ),
        (
            "[spool]\ncapacity = '5 bytes'",
            "hub.toml:2: `spool.capacity` is not usable: \"5 bytes\" is not a size; write a number with its unit (B, KiB, MiB, GiB, kB, MB, GB), like \"256MiB\"",
        ),
        ("mode = 'ful'", "hub.toml:1: `mode` is not usable: unknown variant `ful`, expected `read-only` or `full`"),
        ("spool = 5", "hub.toml:1: `spool` is not usable: it is a table; write its keys under [spool]"),
        ("[http]\ntoken = 12345", "hub.toml:2: `http.token` is not usable: a secret is text in quotes"),
    ];
    for (text, told) in cases {
        assert_eq!(Place::with(text).told(), told, "{text}");
    }
    assert_eq!(
        Place::empty().set("HYPERFACTORY_HUB_HTTP_WORKERS", "many").told(),
        "HYPERFACTORY_HUB_HTTP_WORKERS: `http.workers` is not usable: invalid value: string \"many\", expected u16"
    );
    assert_eq!(
        Place::empty().set("HYPERFACTORY_HUB_MODE", "off").told(),
        "HYPERFACTORY_HUB_MODE: `mode` is not usable: unknown variant `off`, expected `read-only` or `full`"
    );
    assert!(Place::empty().set("HYPERFACTORY_HUB_HTTP_LISTEN_ADDRESS", "nowhere").load().is_err());
    assert!(Place::empty().set("HYPERFACTORY_HUB_LABELS", "x=1").load().is_err());
}

#[test]
fn a_secret_that_is_no_text_is_not_shown_wherever_it_stands() {
    let values = ["12345", "12345.5", "true", "[12345]", "{ a = 12345 }"];
    for (value, (before, key)) in
        values.iter().flat_map(|value| [("[http]\n", "http.token"), ("[[brokers]]\n", "brokers")].map(|at| (value, at)))
    {
        let told = Place::with(&format!("{before}token = {value}")).told();
        assert!(told.contains(&format!("`{key}` is not usable: a secret is text in quotes")), "{told}");
        assert!(!told.contains("123") && !told.contains("true"), "{told}");
    }
    let config = Place::with("[[brokers]]\ntoken = '12345'").load().expect("good");
    assert_eq!(config.brokers[0].token.as_ref().map(Secret::expose), Some("12345"));
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    assert!(Place::with("mode = 'full'\nmode 5\n").told().starts_with("hub.toml:2: "));
    assert!(Place::with("mode = 'full'\nmode = 'full'\n").told().starts_with("hub.toml:2: duplicate key"));
}

#[test]
fn a_file_somebody_named_has_to_exist() {
    let place = Place::empty();
    let absent = place.directory.path().join("absent.toml");
    let error = load::<Config>("hub", Some(&absent), []).expect_err("refused");
    assert_eq!(
        place.clean(&error),
        "cannot read the configuration file absent.toml: check that it exists and is readable, or name another with --config"
    );
    assert!(place.set("HYPERFACTORY_HUB_CONFIG", "/nonexistent/hub.toml").load().is_err());

    let place = Place::with("");
    let other = place.directory.path().join("other.toml");
    std::fs::write(&other, "mode = 'read-only'").expect("written");
    assert_eq!(load::<Config>("hub", Some(&other), []).expect("good").mode, Mode::ReadOnly);
    let place = place.set("HYPERFACTORY_HUB_CONFIG", &other.display().to_string());
    assert_eq!(place.load().expect("good").mode, Mode::ReadOnly);
}

#[test]
fn a_required_key_is_asked_for_by_name() {
    let place = Place::with("name = 'x'\n[hub]\n");
    let load = |environment| load_from::<Needy>(place.directory.path(), "hub", None, environment);
    assert_eq!(
        place.clean(&load(vec![]).expect_err("refused")),
        "`hub.host-name` is not set; add it to hub.toml or set HYPERFACTORY_HUB_HUB_HOST_NAME"
    );
    let given = load(vec![("HYPERFACTORY_HUB_HUB_HOST_NAME".into(), "h".into())]).expect("good");
    assert_eq!((given.name.as_str(), given.hub.host_name.as_str()), ("x", "h"));
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let environment = vec![("HYPERFACTORY_HUB_MODE".into(), OsString::from_vec(vec![0xff]))];
    let error = load_from::<Config>(Place::empty().directory.path(), "hub", None, environment).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "the value of the environment variable HYPERFACTORY_HUB_MODE is not UTF-8 text; correct or unset it"
    );
}
