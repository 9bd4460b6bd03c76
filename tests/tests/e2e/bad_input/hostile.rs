//! Nodes that enrolled in order and then break the protocol's rules.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{SOON, until};
use prost::Message;
use protocol::frame::{MAX_CONTROL, MAX_ENROLL, MAX_TELEMETRY};
use protocol::message::{Acknowledge, Batch, BatchBody, ClockReport, Goodbye, Upload, to_hub, to_node, upload};
use tokio::task::JoinSet;
use transport::CloseCode;

use super::intruder::{EPOCH, NO_LIMIT, Raw, Scene, Session, answer, end, hello};
use super::{agent, coverage, running};

/// What a node's QUIC takes of a stream that nobody reads.
const WINDOW: u64 = 128 * 1024;

/// A key batch with nothing in it.
fn batch(sequence: u64) -> Upload {
    let body = BatchBody { key: true, ..BatchBody::default() }.encode_to_vec();
    Upload { message: Some(upload::Message::Batch(Batch { epoch: EPOCH, sequence, body })) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_frame_ends_the_connection_and_no_other() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    // Before the Hello, in a session, and on the stream of telemetry; also one that is only announced.
    let connection = intruder.connect().await?;
    let (mut writer, _reader) = connection.open(NO_LIMIT).await?;
    let _ = writer.send(&Raw::of(vec![0; MAX_CONTROL + 1])).await;
    let closed = end(&connection).await?;
    assert_eq!(closed.code, CloseCode::FrameTooLarge);
    assert!(closed.reason.contains("a frame of 65537 bytes is over this stream's limit of 65536"), "{closed}");

    let mut session = intruder.session().await?;
    session.writer.send(&Raw { announced: MAX_CONTROL + 1, bytes: vec![0] }).await?;
    assert_eq!(end(&session.connection).await?.code, CloseCode::FrameTooLarge);

    let session = intruder.session().await?;
    let (mut writer, _reader) = session.connection.open(NO_LIMIT).await?;
    let _ = writer.send(&Raw::of(vec![0; MAX_TELEMETRY + 1])).await;
    assert_eq!(end(&session.connection).await?.code, CloseCode::FrameTooLarge);
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_frame_ends_the_connection_and_no_other() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let mut session = intruder.session().await?;
    session.writer.send(&Raw { announced: 100, bytes: vec![0; 10] }).await?;
    session.writer.finish().await?;
    let closed = end(&session.connection).await?;
    assert_eq!((closed.code, closed.reason.as_str()), (CloseCode::Malformed, "the stream ended within a frame"));

    // A batch that is torn is not stored, and what was before it is.
    let session = intruder.session().await?;
    let (mut writer, mut reader) = session.connection.open(NO_LIMIT).await?;
    writer.send(&batch(1)).await?;
    assert_eq!(reader.recv::<Acknowledge>().await?.context("no acknowledgement")?.through, 1);
    let whole = batch(2).encode_to_vec();
    writer.send(&Raw { announced: whole.len(), bytes: whole[..whole.len() - 1].to_vec() }).await?;
    writer.finish().await?;
    assert_eq!(end(&session.connection).await?.code, CloseCode::Malformed);
    assert_eq!(coverage(&scene.hub, &intruder.node())?["stored"], 1);
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_message_is_answered_and_the_session_goes_on() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    // Field 99 of a ToHub, as a newer node may send it: also before its Hello.
    let unknown = || Raw::of([0x9a, 0x06, 0x03, b'n', b'e', b'w']);
    let connection = intruder.connect().await?;
    let (mut writer, mut reader) = connection.open(NO_LIMIT).await?;
    for message in [unknown(), Raw::of(hello().encode_to_vec()), unknown()] {
        writer.send(&message).await?;
    }
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(answer(&mut reader).await?);
    }
    use to_node::Message::{Unsupported, Welcome};
    assert!(matches!(answers.as_slice(), [Unsupported(_), Welcome(_), Unsupported(_)]), "{answers:?}");
    let Unsupported(said) = &answers[2] else { unreachable!() };
    assert!(said.message.contains("does not know"), "{}", said.message);

    // On the stream of telemetry it is skipped.
    let (mut writer, mut reader) = connection.open(NO_LIMIT).await?;
    writer.send(&unknown()).await?;
    writer.send(&batch(1)).await?;
    assert_eq!(reader.recv::<Acknowledge>().await?.context("no acknowledgement")?.through, 1);
    assert_eq!(connection.close_reason(), None);
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_the_connection_and_no_other() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let mut session = intruder.session().await?;
    session.writer.send(&Raw::of([0xff; 64])).await?;
    assert_eq!(end(&session.connection).await?.code, CloseCode::Malformed);

    let session = intruder.session().await?;
    let (mut writer, _reader) = session.connection.open(NO_LIMIT).await?;
    writer.send(&Raw::of([0xff; 64])).await?;
    assert_eq!(end(&session.connection).await?.code, CloseCode::Malformed);

    // A batch whose body is none.
    let session = intruder.session().await?;
    let (mut writer, _reader) = session.connection.open(NO_LIMIT).await?;
    let garbage = Batch { epoch: EPOCH, sequence: 1, body: vec![0xff; 64] };
    writer.send(&Upload { message: Some(upload::Message::Batch(garbage)) }).await?;
    let closed = end(&session.connection).await?;
    assert_eq!((closed.code, closed.reason.as_str()), (CloseCode::Malformed, "batch 1 is not a telemetry batch"));
    assert!(scene.hub.coverage(&intruder.node())?.is_empty());

    // Where a join token is due.
    let pin = pki::trust::pin(&intruder.identity.roots[0])?;
    let config = pki::tls::enroll_config(pin, pki::tls::system_clock())?;
    for bytes in [vec![0xff; 64], vec![0; MAX_ENROLL + 1]] {
        let connection = intruder.endpoint.connect(intruder.identity.hub.parse()?, config.clone()).await?;
        let (mut writer, _reader) = connection.open(NO_LIMIT).await?;
        let _ = writer.send(&Raw::of(bytes)).await;
        let closed = end(&connection).await?;
        assert!(matches!(closed.code, CloseCode::Malformed | CloseCode::FrameTooLarge), "{closed}");
    }
    assert_eq!(scene.hub.nodes()?.len(), 2);
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_out_of_turn_ends_the_session() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let connection = intruder.connect().await?;
    let (mut writer, _reader) = connection.open(NO_LIMIT).await?;
    let report = to_hub::Message::Clock(ClockReport { offset_ms: 0, delay_ms: 0 });
    writer.send(&protocol::message::ToHub { message: Some(report) }).await?;
    let closed = end(&connection).await?;
    assert_eq!(closed.code, CloseCode::Malformed);
    assert!(closed.reason.contains("where Hello was due"), "{closed}");

    let mut session = intruder.session().await?;
    session.writer.send(&hello()).await?;
    let closed = end(&session.connection).await?;
    assert_eq!(closed.code, CloseCode::Malformed);

    // A renewal with a request that is none is refused, and the session goes on.
    let mut session = intruder.session().await?;
    let renew = protocol::message::RenewRequest { certificate_request: vec![0x30; 40], sequence: 1 };
    session.writer.send(&protocol::message::ToHub { message: Some(to_hub::Message::Renew(renew)) }).await?;
    let answer = session.answer().await?;
    let to_node::Message::Renewed(renewed) = answer else { panic!("{answer:?}") };
    assert!(renewed.refusal.is_some() && renewed.certificate_chain.is_empty(), "{renewed:?}");
    let goodbye = to_hub::Message::Goodbye(Goodbye { reason: "done".into(), retry_after_ms: 0 });
    session.writer.send(&protocol::message::ToHub { message: Some(goodbye) }).await?;
    assert_eq!(end(&session.connection).await?.code, CloseCode::Done);
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_telemetry_is_refused_and_nothing_after_it_is_stored() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let session = intruder.session().await?;
    let (mut writer, mut reader) = session.connection.open(NO_LIMIT).await?;
    writer.send(&batch(1)).await?;
    assert_eq!(reader.recv::<Acknowledge>().await?.context("no acknowledgement")?.through, 1);
    let _ = writer.send_all(&[batch(3), batch(4)]).await;
    let closed = end(&session.connection).await?;
    assert_eq!(closed.code, CloseCode::Malformed);
    assert!(closed.reason.starts_with("batch 2 was due and 3 came"), "{closed}");
    let stored = coverage(&scene.hub, &intruder.node())?;
    assert_eq!((&stored["through"], &stored["stored"]), (&1.into(), &1.into()), "{stored}");

    // The next session goes on from there, and may bring again what is stored.
    let session = intruder.session().await?;
    assert_eq!(session.welcome.stored.map(|stored| (stored.epoch, stored.through)), Some((EPOCH, 1)));
    let (mut writer, mut reader) = session.connection.open(NO_LIMIT).await?;
    writer.send_all(&[batch(1), batch(2)]).await?;
    assert_eq!(reader.recv::<Acknowledge>().await?.context("no acknowledgement")?.through, 2);
    assert_eq!(coverage(&scene.hub, &intruder.node())?["stored"], 2);

    // Another spool's batch does not belong here.
    let foreign = Batch { epoch: EPOCH + 1, sequence: 3, body: Vec::new() };
    writer.send(&Upload { message: Some(upload::Message::Batch(foreign)) }).await?;
    let closed = end(&session.connection).await?;
    assert_eq!(closed.code, CloseCode::Malformed);
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_says_hello_is_closed() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let silent = intruder.connect().await?;
    let halting = intruder.connect().await?;
    let (mut writer, _reader) = halting.open(NO_LIMIT).await?;
    writer.send(&Raw { announced: 100, bytes: vec![0] }).await?;
    let closed = tokio::try_join!(end(&silent), end(&halting))?;
    for closed in [closed.0, closed.1] {
        assert_eq!((closed.code, closed.reason.as_str()), (CloseCode::Timeout, "no Hello came in time"));
    }
    assert_eq!(scene.hub.node(&intruder.node())?["presence"]["state"], "never_seen");
    scene.undisturbed()
}

/// A session whose node takes nothing more of the control stream: the hub's answers wait for room.
async fn stuck(mut session: Session) -> Result<Session> {
    let before = session.connection.stats().received_bytes;
    // To each the hub answers with some fifty bytes.
    let unknown: Vec<_> = (0..4_000).map(|_| Raw::of([0x9a, 0x06, 0x00])).collect();
    session.writer.send_all(&unknown).await?;
    let mut last = 0;
    until("the node's window to be full", SOON, || {
        let received = session.connection.stats().received_bytes - before;
        ensure!(received > WINDOW && received == std::mem::replace(&mut last, received), "{received} bytes came");
        Ok(Some(()))
    })?;
    Ok(session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_nothing_is_cut_off_as_any_other() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let displaced = stuck(intruder.session().await?).await?;
    let session = intruder.session().await?;
    assert_eq!(end(&displaced.connection).await?.code, CloseCode::Displaced);

    let (mut writer, mut reader) = session.connection.open(NO_LIMIT).await?;
    writer.send(&batch(1)).await?;
    assert_eq!(reader.recv::<Acknowledge>().await?.context("no acknowledgement")?.through, 1);
    let session = stuck(session).await?;
    let revoke = format!("/api/v1/nodes/{}/revoke", intruder.node());
    scene.hub.api().post(&revoke, &serde_json::json!({ "reason": "key_compromise" }))?.ok()?;
    let _ = writer.send(&batch(2)).await;
    assert_eq!(end(&session.connection).await?.code, CloseCode::Revoked);
    assert_eq!(coverage(&scene.hub, &intruder.node())?["through"], 1);
    scene.undisturbed()
}

/// Sends on what comes to it, and takes no answer: handshakes through it begin and do not end.
struct OneWay {
    address: std::net::SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OneWay {
    fn to(hub: std::net::SocketAddr) -> Result<Self> {
        let (inside, outside) = (std::net::UdpSocket::bind("127.0.0.1:0")?, std::net::UdpSocket::bind("127.0.0.1:0")?);
        inside.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = inside.local_addr()?;
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok(length) = inside.recv(&mut packet) {
                    let _ = outside.send_to(&packet[..length], hub);
                }
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for OneWay {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// A figure of the hub's metrics.
fn metric(scene: &Scene, name: &str) -> Result<f64> {
    let text = scene.hub.api().get("/metrics")?.ok()?;
    let line = text.as_str().and_then(|text| text.lines().find(|line| line.starts_with(name)));
    Ok(line.and_then(|line| line.rsplit_once(' ')).context("no such figure")?.1.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_that_never_end_keeps_nobody_out() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let relay = OneWay::to(scene.hub.endpoints().quic)?;
    let credential = &intruder.identity.credential;
    let roots = &intruder.identity.roots;
    let config = pki::tls::node_config(credential.chain().to_vec(), credential.key(), roots, pki::tls::system_clock())?;
    let mut flood = JoinSet::new();
    for _ in 0..400 {
        let (endpoint, config, address) = (intruder.endpoint.clone(), config.clone(), relay.address);
        flood.spawn(async move { endpoint.connect(address, config).await.is_ok() });
    }
    // And what is not QUIC at all.
    let noise = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for index in 0..5_000_u32 {
        let packet: Vec<u8> = (0..1_200_u32).map(|byte| (byte.wrapping_mul(index ^ 0x9e37) >> 3) as u8).collect();
        noise.send_to(&packet, scene.hub.endpoints().quic)?;
    }
    until("the hub to ask for proofs of address", SOON, || {
        let retries = metric(&scene, "hyperfactory_hub_retries_total")?;
        ensure!(retries > 50.0, "{retries} times");
        Ok(Some(()))
    })?;
    // While it lasts, a good node is served and a new one gets in.
    scene.undisturbed()?;
    let (_second, _) = running(&scene.hub, agent()?, "acme")?;
    until("the hub to drop what never ends", SOON, || {
        let failed = metric(&scene, "hyperfactory_hub_handshakes_failed_total")?;
        ensure!(failed > 30.0, "{failed} dropped");
        Ok(Some(()))
    })?;
    drop(relay);
    while let Some(connected) = flood.join_next().await {
        assert!(!connected?, "a handshake without answers ended well");
    }
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_occupy_enrollment_do_not_keep_sessions_out_and_are_put_out() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let config = pki::tls::enroll_config(pki::trust::pin(&intruder.identity.roots[0])?, pki::tls::system_clock())?;
    let mut strangers = Vec::new();
    for _ in 0..80 {
        strangers.push(intruder.endpoint.connect(intruder.identity.hub.parse()?, config.clone()).await?);
    }
    // More than may wait at once were told so.
    until("somebody to be turned away", SOON, || {
        let turned_away = strangers.iter().filter_map(transport::Connection::close_reason);
        Ok(turned_away.into_iter().find(|closed| closed.code == CloseCode::Draining))
    })?;
    let session = intruder.session().await?;
    scene.undisturbed()?;
    let (_second, _) = running(&scene.hub, agent()?, "acme")?;
    for stranger in &strangers {
        let closed = end(stranger).await?;
        assert!(matches!(closed.code, CloseCode::Draining | CloseCode::Timeout), "{closed}");
    }
    assert_eq!(session.connection.close_reason(), None);
    scene.undisturbed()
}
