//! A stand-in for a broker that keeps access lists: it takes, shows and deletes them as Kafka does, and is nothing else of a broker.
//! It reads and writes by another implementation of the protocol than the agent's own.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::{DeleteAclsFilterResult, DeleteAclsMatchingAcl};
use kafka_protocol::messages::describe_acls_response::{AclDescription, DescribeAclsResource};
use kafka_protocol::messages::{
    ApiKey, CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
    DescribeAclsResponse, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

/// Longest request that is read.
const LONGEST: u32 = 1 << 20;
/// Stands for every value in a filter.
const ANY: i8 = 1;
/// Kafka's number for who may not change access lists.
const NOT_AUTHORIZED: i16 = 31;

/// One entry: kind of resource, its name, kind of pattern, principal, host, operation, permission; by Kafka's numbers.
pub type AccessEntry = (i8, String, i8, String, String, i8, i8);

/// The stand-in; its thread ends with it.
pub struct AccessLists {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    entries: Mutex<BTreeSet<AccessEntry>>,
    refuses: AtomicBool,
    ended: AtomicBool,
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, BTreeSet<AccessEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessLists {
    /// Without any entry, on loopback.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::<Shared>::default();
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                // One after the other: nobody asks for more.
                let _ = socket.map_err(anyhow::Error::from).and_then(|socket| serve(socket, &serving));
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens, without TLS.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it keeps.
    pub fn entries(&self) -> BTreeSet<AccessEntry> {
        self.shared.entries().clone()
    }

    /// Puts an entry there, as somebody else would.
    pub fn put(&self, entry: AccessEntry) {
        self.shared.entries().insert(entry);
    }

    /// From now on it says to everybody that they may not change it, or no more.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }
}

impl Drop for AccessLists {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(mut socket: TcpStream, shared: &Shared) -> Result<()> {
    loop {
        let mut length = [0; 4];
        match socket.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let length = u32::from_be_bytes(length);
        if length > LONGEST {
            bail!("a request of {length} bytes");
        }
        let mut request = vec![0; length as usize];
        socket.read_exact(&mut request)?;
        let answer = answer(&request, shared)?;
        socket.write_all(&u32::try_from(answer.len())?.to_be_bytes())?;
        socket.write_all(&answer)?;
    }
}

fn answer(mut request: &[u8], shared: &Shared) -> Result<Vec<u8>> {
    let [a, b, c, d, ..] = *request else { bail!("a request without a head") };
    let (key, version) = (i16::from_be_bytes([a, b]), i16::from_be_bytes([c, d]));
    let Ok(key) = ApiKey::try_from(key) else { bail!("an unknown request: {key}") };
    let header = RequestHeader::decode(&mut request, key.request_header_version(version))?;
    let mut answer = Vec::new();
    let head = ResponseHeader::default().with_correlation_id(header.correlation_id);
    head.encode(&mut answer, key.response_header_version(version))?;
    let code = if shared.refuses.load(Ordering::Relaxed) { NOT_AUTHORIZED } else { 0 };
    match key {
        ApiKey::DescribeAcls => {
            let asked = DescribeAclsRequest::decode(&mut request, version)?;
            let filter = Filter {
                kind: asked.resource_type_filter,
                name: asked.resource_name_filter,
                pattern: asked.pattern_type_filter,
                principal: asked.principal_filter,
                host: asked.host_filter,
                operation: asked.operation,
                permission: asked.permission_type,
            };
            let entries = shared.entries();
            let resources = entries.iter().filter(|entry| code == 0 && filter.passes(entry)).map(described).collect();
            let response = DescribeAclsResponse::default().with_error_code(code).with_resources(resources);
            response.encode(&mut answer, version)?;
        }
        ApiKey::CreateAcls => {
            let asked = CreateAclsRequest::decode(&mut request, version)?;
            let results = asked.creations.iter().map(|_| AclCreationResult::default().with_error_code(code)).collect();
            let made = asked.creations.into_iter().filter(|_| code == 0).map(|made| {
                let (name, principal) = (made.resource_name.to_string(), made.principal.to_string());
                let (pattern, host) = (made.resource_pattern_type, made.host.to_string());
                (made.resource_type, name, pattern, principal, host, made.operation, made.permission_type)
            });
            shared.entries().extend(made);
            CreateAclsResponse::default().with_results(results).encode(&mut answer, version)?;
        }
        ApiKey::DeleteAcls => {
            let asked = DeleteAclsRequest::decode(&mut request, version)?;
            let mut results = Vec::new();
            for filter in asked.filters {
                let filter = Filter {
                    kind: filter.resource_type_filter,
                    name: filter.resource_name_filter,
                    pattern: filter.pattern_type_filter,
                    principal: filter.principal_filter,
                    host: filter.host_filter,
                    operation: filter.operation,
                    permission: filter.permission_type,
                };
                let mut entries = shared.entries();
                let gone: Vec<AccessEntry> =
                    entries.iter().filter(|entry| code == 0 && filter.passes(entry)).cloned().collect();
                entries.retain(|entry| !gone.contains(entry));
                let matching = gone.iter().map(deleted).collect();
                results.push(DeleteAclsFilterResult::default().with_error_code(code).with_matching_acls(matching));
            }
            DeleteAclsResponse::default().with_filter_results(results).encode(&mut answer, version)?;
        }
        other => bail!("this stand-in keeps access lists alone, and was asked for {other:?}"),
    }
    if !request.is_empty() {
        bail!("{} bytes too many in a request", request.len());
    }
    Ok(answer)
}

/// What entries are chosen by.
struct Filter {
    kind: i8,
    name: Option<StrBytes>,
    pattern: i8,
    principal: Option<StrBytes>,
    host: Option<StrBytes>,
    operation: i8,
    permission: i8,
}

impl Filter {
    fn passes(&self, (kind, name, pattern, principal, host, operation, permission): &AccessEntry) -> bool {
        let number = |wanted: i8, found: i8| wanted == ANY || wanted == found;
        let text = |wanted: &Option<StrBytes>, found: &str| wanted.as_ref().is_none_or(|wanted| **wanted == *found);
        number(self.kind, *kind)
            && number(self.pattern, *pattern)
            && number(self.operation, *operation)
            && number(self.permission, *permission)
            && text(&self.name, name)
            && text(&self.principal, principal)
            && text(&self.host, host)
    }
}

fn described((kind, name, pattern, principal, host, operation, permission): &AccessEntry) -> DescribeAclsResource {
    let description = AclDescription::default()
        .with_principal(StrBytes::from_string(principal.clone()))
        .with_host(StrBytes::from_string(host.clone()))
        .with_operation(*operation)
        .with_permission_type(*permission);
    DescribeAclsResource::default()
        .with_resource_type(*kind)
        .with_resource_name(StrBytes::from_string(name.clone()))
        .with_pattern_type(*pattern)
        .with_acls(vec![description])
}

fn deleted((kind, name, pattern, principal, host, operation, permission): &AccessEntry) -> DeleteAclsMatchingAcl {
    DeleteAclsMatchingAcl::default()
        .with_resource_type(*kind)
        .with_resource_name(StrBytes::from_string(name.clone()))
        .with_pattern_type(*pattern)
        .with_principal(StrBytes::from_string(principal.clone()))
        .with_host(StrBytes::from_string(host.clone()))
        .with_operation(*operation)
        .with_permission_type(*permission)
}
