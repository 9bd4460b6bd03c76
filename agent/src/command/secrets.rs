//! What in a text looks like a secret. Nothing that goes to the hub but logs should hold one: this is for what does all the
//! same, such as an engine's address with a password in it, or an engine's error that repeats a container's command.

use regex::Regex;

/// Words in the name of something that is not shown.
const NAMES: &str =
    r"passw(?:or)?d|passphrase|pwd|secret|token|credential|(?:api|access)[_-]?key|[_-]key\b|dsn|authorization";

/// Hides the values of secrets, one pattern after the other.
pub(super) struct Secrets(Vec<(Regex, &'static str)>);

impl Secrets {
    /// # Errors
    /// When a pattern is none: never, as the tests show.
    pub(super) fn new() -> Result<Self, regex::Error> {
        // In quotes, in quotes of a text in quotes, or to where it can only end.
        let value = r#"(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|\\+"[^"\\]*|[^\s,;&"')\]}]+)"#;
        let quote = r#"\\*["']"#;
        let name = format!(r"[\w.-]*(?:{NAMES})[\w.-]*");
        let patterns = [
            // A key, to its end or the text's.
            (r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)".to_owned(), "${1}…"),
            // What this product's own begin with.
            (r"\b(hf(?:j|t|l|ok)_)[\w.-]+".to_owned(), "${1}…"),
            (r#"(?i)\b((?:bearer|authorization["']?\s*[=:]\s*\w+)\s+)[A-Za-z0-9+/=_.~-]+"#.to_owned(), "${1}…"),
            // scheme://user:password@host
            (r#"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s"'/]*[^\s"']*@"#.to_owned(), "${1}…@"),
            // --password=…, --password …, also as a list.
            (format!(r#"(?i)((?:^|[\s"',\[])--?{name}(?:{quote})?[=,\s]\s*){value}"#), "${1}…"),
            // PASSWORD=…, "password": "…", password: Some("…")
            (format!(r#"(?i)({name}(?:{quote})?\s*[=:]\s*(?:Some\()?){value}"#), "${1}…"),
        ];
        let compiled = patterns.into_iter().map(|(pattern, shown)| Ok((Regex::new(&pattern)?, shown)));
        compiled.collect::<Result<_, _>>().map(Self)
    }

    /// The text without them.
    pub(super) fn hide(&self, text: &str) -> String {
        let hide = |text: String, (pattern, shown): &(Regex, &str)| pattern.replace_all(&text, *shown).into_owned();
        self.0.iter().fold(text.to_owned(), hide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_every_kind_of_secret_the_name_stays_and_the_value_goes() {
        let secrets = Secrets::new().unwrap();
        for said in [
            "MYSQL_ROOT_PASSWORD=pl4nted",
            "DB_PASSWD='pl4nted words'",
            "API_TOKEN: pl4nted",
            "STRIPE_SECRET_KEY=sk_pl4nted",
            "ENCRYPTION_KEY=pl4nted",
            "aws_access_key_id = pl4nted",
            r#"{"Env":["SMTP_PASSWORD=pl4nted"],"client_secret": "pl4nted \" pl4nted"}"#,
            r#"dsn: Some("postgres://shop:pl4nted@db/shop")"#,
            "DATABASE_URL=postgres://shop:pl4nted@db:5432/shop?sslmode=require",
            "amqp://guest:p/l@pl4nted@mq/",
            "redis://:pl4nted@cache",
            r#"exec: "mysqld --password=pl4nted": executable file not found"#,
            "mysqld --password pl4nted --port 3306",
            r#"["mysqld","--root-password","pl4nted"]"#,
            "Authorization: Bearer pl4nted.eyJhbGciOi",
            "curl -H 'authorization: bearer pl4nted1234'",
            "Proxy-Authorization: Basic cGw0bnRlZDpwbDRudGVk",
            r#"the body "{\"password\":\"pl4nted\"}" is refused"#,
            "enroll --token hfj_pl4nted",
            "the link hfl_pl4nted, the token hft_pl4nted and the key hfok_pl4nted",
            "-----BEGIN PRIVATE KEY-----\npl4nted\npl4nted\n-----END PRIVATE KEY-----\nshown",
            r"-----BEGIN RSA PRIVATE KEY-----\npl4nted\npl4nted",
        ] {
            let shown = secrets.hide(said);
            assert!(!shown.contains("pl4nted") && !shown.contains("cGw0") && shown.contains('…'), "{said}: {shown}");
        }
        let shown = secrets.hide("web: DB_PASSWORD=pl4nted, port=5432; postgres://shop:pl4nted@db/shop");
        assert_eq!(shown, "web: DB_PASSWORD=…, port=5432; postgres://…@db/shop");
    }

    #[test]
    fn what_is_no_secret_stays() {
        let secrets = Secrets::new().unwrap();
        for said in [
            "Docker Engine 20.10 (API 1.41)",
            r#"key: Some("/etc/hyperfactory/kafka.key"),"#,
            "the join token was used by another node",
            "the join-token was used by another node",
            "docker.io/library/postgres:16@sha256:4f36d2b1c0",
            "https://hub.example:7443/pki/fleet-root.pem",
            "session up session=019ab0c2 remote=192.0.2.7:7443 clock_offset_ms=3",
            "no session: the hub's certificate is not valid: basic constraints",
        ] {
            assert_eq!(secrets.hide(said), said);
        }
    }
}
