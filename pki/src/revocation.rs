//! Certificate revocation lists (RFC 5280, section 5): what an authority no longer stands for, signed by itself.

use std::time::Duration;

use protocol::Timestamp;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use crate::authority::{Authority, AuthorityError};
use crate::certificate::Facts;
use crate::serial::Serial;

pub use rcgen::RevocationReason;

/// One line of a list.
#[derive(Clone, Copy, Debug)]
pub struct Revocation {
    /// Which certificate of the authority's.
    pub serial: Serial,
    /// Since when it is not trusted.
    pub at: Timestamp,
    /// Why not.
    pub reason: RevocationReason,
}

impl Authority {
    /// The list of what this authority has revoked, in DER: made at `now`, to be replaced before `now + lifetime`. Its
    /// number is the time it was made, so that a later one has a larger one.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`] when it can't be encoded or signed, as for a time before 1970.
    pub fn revocation_list(
        &self,
        revoked: impl IntoIterator<Item = Revocation>,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        let key_id = Facts::parse(self.certificate_der()).and_then(|facts| facts.key_id.map(<[u8]>::to_vec));
        let number = now.millis().max(0).unsigned_abs();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let date = |at: Timestamp| epoch + Duration::from_secs(at.seconds().max(0).unsigned_abs());
        let line = |revocation: Revocation| RevokedCertParams {
            serial_number: revocation.serial.as_bytes().to_vec().into(),
            revocation_time: date(revocation.at),
            // "Unspecified" is to be left out (RFC 5280, section 5.3.1).
            reason_code: Some(revocation.reason).filter(|reason| *reason != RevocationReason::Unspecified),
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date(now),
            next_update: date(now.plus(lifetime)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.into_iter().map(line).collect(),
            // As it stands in the authority's certificate: derived anew, it might be another.
            key_identifier_method: KeyIdMethod::PreSpecified(key_id.ok_or(AuthorityError::Certificate)?),
        };
        Ok(list.signed_by(self.issuer()).map_err(AuthorityError::Issue)?.der().to_vec())
    }
}
