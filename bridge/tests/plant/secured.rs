//! A Mosquitto that speaks TLS alone, and asks for a password.

use std::path::PathBuf;
use std::process::Command;

use hyperfactory_tests::rig::free_port;
use rdkafka::mocking::MockCluster;
use tempfile::TempDir;

use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::rig::Bridge;
use crate::tls::Plane;

/// One whose second listener is so; by the first, tests publish.
struct Secured {
    mosquitto: Mosquitto,
    port: u16,
    files: TempDir,
}

impl Secured {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let [authority, strangers, certificate, key, passwords, nothing] =
            ["ca.pem", "other.pem", "server.pem", "server.key", "passwords", "empty.pem"]
                .map(|name| files.path().join(name));
        let plane = Plane::of("acme");
        plane.write_authority(&authority);
        plane.write_server(&certificate, &key);
        Plane::of("other").write_authority(&strangers);
        std::fs::write(nothing, "").unwrap();
        let mut command = Command::new("mosquitto_passwd");
        assert!(command.args(["-b", "-c"]).arg(&passwords).args(["bridge", "right"]).status().unwrap().success());
        let port = free_port();
        let secured = format!(
            "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {}\ncertfile {}\nkeyfile {}\n",
            passwords.display(),
            certificate.display(),
            key.display()
        );
        let mosquitto = Mosquitto::start_with(|settings| format!("per_listener_settings true\n{settings}{secured}"));
        Self { mosquitto, port, files }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Routes of a bridge that connects there so.
    fn routes(&self, version: &str, ca: &str, password: &str) -> String {
        format!(
            "[[mqtt]]\nname = \"secured\"\naddress = \"127.0.0.1:{}\"\n{version}\nca = {:?}\nusername = \"bridge\"\n\
             password = {password:?}\n[[route]]\nfrom = \"machines/#\"\nto = \"machines\"\nmqtt = \"secured\"\n",
            self.port,
            self.file(ca)
        )
    }
}

#[test]
fn a_broker_with_tls_and_passwords_takes_the_bridge_and_what_is_wrong_is_said() {
    for version in ["version = 3", "version = 5"] {
        let (cluster, secured) = (MockCluster::new(1).unwrap(), Secured::start());
        cluster.create_topic("machines", 1, 1).unwrap();
        let brokers = cluster.bootstrap_servers();
        let mut bridge = Bridge::start(&secured.mosquitto, &brokers, &secured.routes(version, "ca.pem", "right"));
        bridge.subscribed(1);
        let mut published = Publisher::publish(&secured.mosquitto, "machines/a", 1..=20);
        // The session is there: what comes meanwhile waits.
        for (ca, password, said) in [
            ("ca.pem", "wrong", "see that it knows mqtt.username, mqtt.password"),
            ("other.pem", "right", "no TLS with the broker: invalid peer certificate: UnknownIssuer; see that mqtt.ca"),
        ] {
            bridge.stop();
            bridge.configure(&secured.mosquitto, &brokers, &secured.routes(version, ca, password), "");
            bridge.start_again();
            bridge.said_again(said, 2);
            published = Publisher::publish(&secured.mosquitto, "machines/a", published + 1..=published + 20);
        }
        bridge.stop();
        bridge.configure(&secured.mosquitto, &brokers, &secured.routes(version, "ca.pem", "right"), "");
        bridge.start_again();
        let published = [("machines/a".to_owned(), published)];
        Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
        bridge.stop();
        assert_eq!(bridge.times("panicked"), 0);

        bridge.configure(&secured.mosquitto, &brokers, &secured.routes(version, "empty.pem", "right"), "");
        assert!(bridge.refused(&["run"]).contains("empty.pem holds no certificate"));
    }
}
