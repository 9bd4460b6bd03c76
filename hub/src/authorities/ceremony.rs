//! A signing ceremony: what a hub asks of its root that is kept offline, and what the root has signed, as they travel in
//! files. Judging and signing needs neither database nor configuration.

use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use pki::offline::read_list;
use pki::{Authority, AuthorityError, CertificateDer, RequestedKey, Revocation, Role, Summary, pem};
use protocol::{TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::enrollment::Reason;

const DAY: Duration = Duration::from_secs(86_400);
/// Longest life of what a root signs in a ceremony.
const LONGEST: Duration = DAY.saturating_mul(3_650);
/// How much earlier than the requests a clock may be that signs them: two machines are never quite together.
const EARLY: Duration = Duration::from_secs(3600);
/// Requests that are older than this were left over, or the clock that signs is wrong.
const LATE: Duration = DAY.saturating_mul(60);

/// What waits for the root's signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// The root that is to sign, in PEM.
    pub root: String,
    /// When the requests were written, milliseconds since the Unix epoch.
    pub made_at_ms: i64,
    /// What is asked for.
    pub requests: Vec<Request>,
}

/// One thing to sign.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// An intermediate: a tenant's for its nodes, or the hub's own.
    Intermediate {
        /// Whose; none: the hub's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant: Option<String>,
        /// Counts from 1.
        generation: i64,
        /// How long it is to live.
        lifetime_seconds: u64,
        /// A PKCS#10 request in DER, Base64: proof that the hub has the key. Nothing else of it is taken.
        request: String,
    },
    /// An introduction of the root that follows this one.
    Link {
        /// That root, in PEM.
        to: String,
    },
    /// The root's revocation list.
    RevocationList {
        /// For how long it is to be good.
        lifetime_seconds: u64,
        /// What is on it.
        revoked: Vec<Revoked>,
    },
}

/// A line of the revocation list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Hexadecimal.
    pub serial: String,
    /// Since when, milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Why.
    pub reason: String,
}

/// What the root has signed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The root, in PEM.
    pub root: String,
    /// SHA-256 of the requests that were answered, hexadecimal.
    pub requests: String,
    /// When, milliseconds since the Unix epoch.
    pub signed_at_ms: i64,
    /// Intermediates, in PEM.
    pub intermediates: Vec<String>,
    /// Links to other roots, in PEM.
    pub links: Vec<String>,
    /// The root's revocation list, in DER, Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_list: Option<String>,
}

/// Requests that were judged, and may be signed.
#[derive(Debug)]
pub struct Plan {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Intermediate { role: Role, key: RequestedKey, generation: i64, lifetime: Duration },
    Link { to: CertificateDer<'static>, summary: Summary },
    List { revoked: Vec<Revocation>, lifetime: Duration },
}

/// What was signed, for the log beside the key.
#[derive(Clone, Debug, Serialize)]
pub struct Signed {
    /// In words.
    pub what: String,
    /// SHA-256 of it in DER, hexadecimal.
    pub sha256: String,
    /// Its serial, hexadecimal; none for a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Until when it is good.
    pub until: String,
}

/// Requests that are not signed.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// They name another root.
    #[error(
        "the requests are for the root with the key {asked}, and this is the key {given}: take the key file of that fleet"
    )]
    OtherRoot {
        /// The root the requests name.
        asked: String,
        /// The root at hand.
        given: String,
    },
    /// Request and clock do not go together.
    #[error(
        "the requests were made at {made_at}, and this machine's clock says {now}: set the clock, or have the hub write \
         its requests anew"
    )]
    Clock {
        /// When the requests were made, by the hub's clock.
        made_at: Timestamp,
        /// By this machine's.
        now: Timestamp,
    },
    /// One of them asks for what no root of a fleet signs.
    #[error("request {number} {why}: nothing was signed; have the hub write its requests anew")]
    Policy {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
    /// There is nothing to sign.
    #[error("the file asks for nothing")]
    Nothing,
    /// It could not be signed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Requests {
    /// Judges each request by what a root of a fleet signs. Names, constraints and purposes follow from the role; of a request
    /// for a certificate, the public key is taken and nothing else.
    ///
    /// # Errors
    /// [`CeremonyError`]; nothing is to be signed then.
    pub fn judge(&self, root: &Authority, now: Timestamp) -> Result<Plan, CeremonyError> {
        let asked = certificate(&self.root).and_then(|root| Summary::of(&root).ok()).map(|root| root.spki_sha256);
        if asked != Some(root.spki_sha256()) {
            let asked = asked.map_or_else(|| "?".to_owned(), |key| short(&key));
            return Err(CeremonyError::OtherRoot { asked, given: short(&root.spki_sha256()) });
        }
        let made_at = Timestamp::from_millis(self.made_at_ms);
        if now.plus(EARLY) < made_at || now.since(made_at) > LATE {
            return Err(CeremonyError::Clock { made_at, now });
        }
        let judge = |request: &Request| {
            let step = request.read()?;
            match &step {
                Step::Intermediate { key, .. } if key.spki_sha256() == root.spki_sha256() => {
                    Err("is for the root's own key".to_owned())
                }
                Step::Link { to, .. } => {
                    root.link(to, now).map(|_| step).map_err(|error| format!("can't be linked: {error}"))
                }
                _ => Ok(step),
            }
        };
        let steps = (1..).zip(&self.requests);
        let steps = steps.map(|(number, request)| judge(request).map_err(|why| CeremonyError::Policy { number, why }));
        let steps: Vec<Step> = steps.collect::<Result<_, _>>()?;
        if steps.is_empty() { Err(CeremonyError::Nothing) } else { Ok(Plan { steps }) }
    }

    /// What is asked for, in the words in which it is shown to whoever signs.
    pub fn lines(&self) -> Vec<String> {
        let line = |request: &Request| request.read().map_or_else(|why| format!("this {why}"), |step| step.to_string());
        self.requests.iter().map(line).collect()
    }
}

impl Request {
    fn read(&self) -> Result<Step, String> {
        match self {
            Self::Intermediate { tenant, generation, lifetime_seconds, request } => {
                let role = match tenant {
                    None => Role::Hub,
                    Some(tenant) => Role::Nodes(tenant.parse::<TenantId>().map_err(|_| "names no tenant".to_owned())?),
                };
                let request =
                    BASE64.decode(request.as_bytes()).map_err(|_| "holds no certificate request".to_owned())?;
                let key = pki::verify_request(&request).map_err(|error| format!("is not good: {error}"))?;
                Ok(Step::Intermediate { role, key, generation: *generation, lifetime: life(*lifetime_seconds)? })
            }
            Self::Link { to } => {
                let to = certificate(to).ok_or("holds no certificate of a root")?;
                let summary = Summary::of(&to).map_err(|error| error.to_string())?;
                Ok(Step::Link { to, summary })
            }
            Self::RevocationList { lifetime_seconds, revoked } => {
                let revoked = revoked.iter().map(Revoked::parse).collect::<Option<_>>();
                let revoked = revoked.ok_or("has a line without serial or reason")?;
                Ok(Step::List { revoked, lifetime: life(*lifetime_seconds)? })
            }
        }
    }
}

impl Revoked {
    pub(super) fn parse(&self) -> Option<Revocation> {
        Some(Revocation {
            serial: self.serial.parse().ok()?,
            at: Timestamp::from_millis(self.at_ms),
            reason: self.reason.parse::<Reason>().ok()?.into(),
        })
    }
}

impl Plan {
    /// What would be signed, in words, a line each.
    pub fn lines(&self) -> Vec<String> {
        self.steps.iter().map(Step::to_string).collect()
    }

    /// Signs all of it. `requests` is the SHA-256 of the file it came from, hexadecimal.
    ///
    /// # Errors
    /// When the root is not valid at `now`, or can't sign.
    pub fn sign(
        &self,
        root: &Authority,
        requests: String,
        now: Timestamp,
    ) -> Result<(Answers, Vec<Signed>), CeremonyError> {
        let mut answers = Answers {
            root: pem::certificates([root.certificate_der()]),
            requests,
            signed_at_ms: now.millis(),
            intermediates: Vec::new(),
            links: Vec::new(),
            revocation_list: None,
        };
        let mut signed = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let what = step.to_string();
            let der = match step {
                Step::Intermediate { role, key, lifetime, .. } => {
                    let der = root.sign_intermediate(role, key, now, *lifetime)?;
                    answers.intermediates.push(pem::certificates([&CertificateDer::from(&*der)]));
                    der
                }
                Step::Link { to, .. } => {
                    let link = root.link(to, now)?;
                    answers.links.push(pem::certificates([&link]));
                    link.to_vec()
                }
                Step::List { revoked, lifetime } => {
                    let list = root.revocation_list(revoked.iter().copied(), now, *lifetime)?;
                    answers.revocation_list = Some(BASE64.encode(&list));
                    list
                }
            };
            let summary = Summary::of(&der).ok();
            let until = match &summary {
                Some(summary) => summary.not_after,
                None => read_list(&der, root.certificate_der()).map_or(now, |list| list.until),
            };
            signed.push(Signed {
                what,
                sha256: HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, &der).as_ref()),
                serial: summary.map(|summary| HEXLOWER.encode(&summary.serial)),
                until: until.to_string(),
            });
        }
        Ok((answers, signed))
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Intermediate { role, key, generation, lifetime } => {
                match role {
                    Role::Nodes(tenant) => {
                        write!(f, "tenant {tenant}: the authority that issues its nodes' identities")?
                    }
                    _ => f.write_str("the hub's own authority, which issues what the hub shows nodes")?,
                }
                let (days, key) = (lifetime.as_secs().div_ceil(86_400), short(&key.spki_sha256()));
                write!(f, ", generation {generation}, for {days} days, key {key}")
            }
            Self::Link { summary, .. } => write!(
                f,
                "ANOTHER ROOT is introduced, key {}, until {}: whoever has its key speaks for the whole fleet",
                short(&summary.spki_sha256),
                summary.not_after
            ),
            Self::List { revoked, lifetime } => write!(
                f,
                "the root's revocation list, with {} entries, good for {} days",
                revoked.len(),
                lifetime.as_secs().div_ceil(86_400)
            ),
        }
    }
}

/// Of a key's hash, as much as people compare.
pub(crate) fn short(spki_sha256: &[u8; 32]) -> String {
    HEXLOWER.encode(&spki_sha256[..8])
}

/// The one certificate in `text`.
pub(super) fn certificate(text: &str) -> Option<CertificateDer<'static>> {
    let mut all = pem::read_certificates(text).ok()?;
    if all.len() == 1 { all.pop() } else { None }
}

fn life(seconds: u64) -> Result<Duration, String> {
    let life = Duration::from_secs(seconds);
    let days = LONGEST.as_secs() / 86_400;
    if (DAY..=LONGEST).contains(&life) {
        Ok(life)
    } else {
        Err(format!("is for less than a day or more than {days} days"))
    }
}

#[cfg(test)]
mod tests {
    use pki::PrivateKey;
    use pki::authority::ROOT_LIFETIME;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn root() -> Authority {
        Authority::create_root(NOW, ROOT_LIFETIME).expect("a root")
    }

    fn intermediate(tenant: Option<&str>, key: &PrivateKey, days: u64) -> Request {
        Request::Intermediate {
            tenant: tenant.map(str::to_owned),
            generation: 1,
            lifetime_seconds: days * 86_400,
            request: BASE64.encode(&key.certificate_request().expect("a request")),
        }
    }

    fn requests(root: &Authority, requests: Vec<Request>) -> Requests {
        Requests { root: pem::certificates([root.certificate_der()]), made_at_ms: NOW.millis(), requests }
    }

    #[test]
    fn what_is_signed_is_said_before_and_is_what_the_role_has() {
        let (root, next) = (root(), root());
        let key = PrivateKey::generate().expect("a key");
        let revoked = vec![Revoked { serial: "40".repeat(16), at_ms: NOW.millis(), reason: "superseded".into() }];
        let asked = requests(
            &root,
            vec![
                intermediate(Some("acme"), &key, 365),
                intermediate(None, &PrivateKey::generate().expect("a key"), 30),
                Request::Link { to: pem::certificates([next.certificate_der()]) },
                Request::RevocationList { lifetime_seconds: 400 * 86_400, revoked },
            ],
        );
        let plan = asked.judge(&root, NOW).expect("to be signed");
        let lines = plan.lines();
        for (line, part) in lines.iter().zip([
            format!(
                "tenant acme: the authority that issues its nodes' identities, generation 1, for 365 days, key {}",
                short(&key.spki_sha256())
            ),
            "the hub's own authority".into(),
            format!("ANOTHER ROOT is introduced, key {}", short(&next.spki_sha256())),
            "revocation list, with 1 entries, good for 400 days".into(),
        ]) {
            assert!(line.contains(&part), "{line}");
        }
        let (answers, signed) = plan.sign(&root, "hash".into(), NOW).expect("signed");
        assert_eq!((answers.intermediates.len(), answers.links.len(), signed.len()), (2, 1, 4));
        let acme = certificate(&answers.intermediates[0]).expect("a certificate");
        let role = Role::Nodes("acme".parse().expect("a tenant"));
        pki::offline::check_intermediate(&acme, &role, root.certificate_der()).expect("the tenant's");
        let list = BASE64.decode(answers.revocation_list.expect("a list").as_bytes()).expect("Base64");
        assert_eq!(read_list(&list, root.certificate_der()).expect("a list").serials.len(), 1);
    }

    #[test]
    fn what_no_root_signs_is_refused_by_its_number() {
        let root = root();
        let key = PrivateKey::generate().expect("a key");
        let good = intermediate(Some("acme"), &key, 365);
        let mut forged = key.certificate_request().expect("a request");
        *forged.last_mut().expect("bytes") ^= 1;
        let unproved = Request::Intermediate {
            tenant: Some("acme".into()),
            generation: 1,
            lifetime_seconds: 86_400,
            request: BASE64.encode(&forged),
        };
        let leaf = Request::Link { to: pem::certificates([root.certificate_der()]) };
        let list = |reason: &str, serial: &str| Request::RevocationList {
            lifetime_seconds: 86_400,
            revoked: vec![Revoked { serial: serial.into(), at_ms: 0, reason: reason.into() }],
        };
        for (bad, why) in [
            (intermediate(Some("Not A Tenant"), &key, 365), "names no tenant"),
            (intermediate(Some("acme"), &key, 11 * 365), "more than 3650 days"),
            (intermediate(Some("acme"), &key, 0), "less than a day"),
            (unproved, "not signed by the key"),
            (leaf, "can't be linked"),
            (list("because", &"40".repeat(16)), "without serial or reason"),
            (list("superseded", "zz"), "without serial or reason"),
        ] {
            let error = requests(&root, vec![good.clone(), bad]).judge(&root, NOW).expect_err(why).to_string();
            assert!(error.starts_with("request 2 ") && error.contains(why), "{error}");
        }
        assert!(matches!(requests(&root, Vec::new()).judge(&root, NOW), Err(CeremonyError::Nothing)));
    }

    #[test]
    fn requests_for_another_root_or_of_another_time_are_refused() {
        let (root, other) = (root(), root());
        let key = PrivateKey::generate().expect("a key");
        let asked = requests(&root, vec![intermediate(None, &key, 365)]);
        let error = asked.judge(&other, NOW).expect_err("another root").to_string();
        assert!(error.contains(&short(&root.spki_sha256())) && error.contains(&short(&other.spki_sha256())), "{error}");
        for wrong in [NOW.minus(Duration::from_secs(2 * 3600)), NOW.plus(DAY * 61)] {
            let error = asked.judge(&root, wrong).expect_err("another time").to_string();
            assert!(error.contains("set the clock"), "{error}");
        }
        asked.judge(&root, NOW.minus(Duration::from_secs(600))).expect("a little early");
    }
}
