//! What a tenant's Kafka broker shows and asks for, all of it from a hub; a [`super::Front`] does so before a broker without TLS.

use std::sync::Arc;

use anyhow::{Context, Result};
use pki::{CertificateDer, PrivateKey, pem};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;

use super::hub::Hub;

/// With a new certificate, and the roots and the revocation lists as they are now.
pub fn kafka_server(hub: &Hub, tenant: &str) -> Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    let bundle = String::from_utf8(hub.api().download(&format!("/pki/{tenant}/kafka-root.pem"))?)?;
    roots.add_parsable_certificates(pem::read_certificates(&bundle)?);
    let authorities = hub.api().get(&format!("/api/v1/authorities?tenant={tenant}"))?.ok()?;
    let authorities = authorities.as_array().context("no list of authorities")?;
    let lists = authorities.iter().filter(|one| one["kind"] == "kafka").map(|one| {
        hub.api().download(one["revocation_list"].as_str().context("an authority without a revocation list")?)
    });
    kafka_server_that_trusts(hub, tenant, roots, lists.collect::<Result<_>>()?)
}

/// With a new certificate, for clients of other roots.
pub fn kafka_server_that_trusts(
    hub: &Hub,
    tenant: &str,
    roots: RootCertStore,
    lists: Vec<Vec<u8>>,
) -> Result<ServerConfig> {
    let key = PrivateKey::generate()?;
    let request = CertificateDer::from(key.certificate_request()?);
    let request = pem::certificates([&request]).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    let path = format!("/api/v1/tenants/{tenant}/kafka/server-certificate");
    let wanted = json!({ "certificate_request": request, "ip_addresses": ["127.0.0.1"] });
    let issued = hub.api().post(&path, &wanted)?.ok()?;
    let chain = pem::read_certificates(issued["certificate"].as_str().context("no certificate in the reply")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .with_crls(lists.into_iter().map(Into::into))
        .build()?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(key.to_pkcs8().to_vec().into()))?)
}
