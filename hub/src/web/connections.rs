//! Connections of browsers, `hfctl` and scrapers: accepted within bounds, with TLS or without, and served.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::{BoxError, Router};
use futures_util::{Stream, StreamExt as _, stream};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::door::Door;
use crate::gateway::network;
use crate::metrics::Metrics;
use crate::seats::{Seat, Seats};

/// Connections at once. One more waits in the system's queue until another ends.
const CONNECTIONS: usize = 1024;
/// Connections at once from one IPv4 address or IPv6 /64, so that nobody has them all. One more is closed. Loopback is
/// exempt: a proxy there brings everybody's.
const PER_SOURCE: usize = CONNECTIONS / 4;
/// How long a connection's first request may take to come.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may rest between two: longer than proxies keep theirs.
const HEAD_WITHIN: Duration = Duration::from_secs(75);
/// How long a request's body may take.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// How long the other side may take none of what is sent to it. Then the system ends the connection.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
/// What a connection may make the hub hold of a request that is not read yet, bytes.
const BUFFER: usize = 32 * 1024;
/// The pause when the system has no descriptor or memory for another connection.
const PAUSE: Duration = Duration::from_secs(1);

/// The HTTP side, about to serve.
pub(crate) struct Server {
    pub(crate) listener: TcpListener,
    /// What speaks TLS; plain HTTP without it.
    pub(crate) door: Option<Door>,
    pub(crate) router: Router,
    pub(crate) metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `shutdown`, and then until every connection has had its answer. Dropped, it cuts them all.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let sources = Seats::default();
        let door = self.door.map(Arc::new);
        let mut connections = JoinSet::new();
        loop {
            // The place comes first: who waits for one waits in the system's own bounded queue.
            let place = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let Ok(place) = place else { break };
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
                        tracing::error!(%error, "no connection can be accepted; trying again in a second");
                        let _ = shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                    }
                    continue;
                }
            };
            let Some(seat) = seat(&sources, remote.ip(), PER_SOURCE) else {
                self.metrics.http_refused.inc();
                continue;
            };
            let (door, router, shutdown) = (door.clone(), self.router.clone(), shutdown.clone());
            let metrics = Arc::clone(&self.metrics);
            connections.spawn(async move {
                metrics.http_connections.inc();
                attend(stream, remote, door.as_deref(), router, shutdown, &metrics).await;
                metrics.http_connections.dec();
                drop((place, seat));
            });
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

async fn attend(
    stream: TcpStream,
    remote: SocketAddr,
    door: Option<&Door>,
    router: Router,
    shutdown: CancellationToken,
    metrics: &Metrics,
) {
    prepare(&stream);
    let Some(door) = door else { return converse(stream, remote, router, shutdown).await };
    match shutdown.run_until_cancelled(door.enter(stream)).await {
        Some(Ok(secured)) => converse(secured, remote, router, shutdown).await,
        Some(Err(reason)) => {
            metrics.https_handshakes_failed.inc();
            tracing::debug!(%remote, %reason, "no TLS");
        }
        None => {}
    }
}

fn prepare(stream: &TcpStream) {
    // Events are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(TAKEN_WITHIN));
}

/// Answers request after request until either side has enough; at `shutdown` after the one that is under way.
async fn converse(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    remote: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
) {
    let asked = AtomicBool::new(false);
    let answer = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let mut request = request.map(within);
        request.extensions_mut().insert(ConnectInfo(remote));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(io), answer);
    let mut connection = std::pin::pin!(connection);
    let silent = async {
        tokio::time::sleep(FIRST_WITHIN).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    // An error is the other side's going away, or not being HTTP: nothing for anybody to do.
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        () = silent => {}
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// The body, as long as it does not take too long.
fn within(body: Incoming) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    Body::from_stream(until(Body::new(body).into_data_stream(), Instant::now() + BODY_WITHIN))
}

fn until(data: BodyDataStream, deadline: Instant) -> impl Stream<Item = Result<Bytes, BoxError>> {
    stream::unfold(data, move |mut data| async move {
        let next = match tokio::time::timeout_at(deadline, data.next()).await {
            Ok(next) => next?.map_err(BoxError::from),
            Err(_) => Err("the request's body took too long".into()),
        };
        Some((next, data))
    })
}

/// A place for `address`; `None` when its network has `most` already.
fn seat(sources: &Seats<IpAddr>, address: IpAddr, most: usize) -> Option<Seat<IpAddr>> {
    let most = if address.to_canonical().is_loopback() { usize::MAX } else { most };
    sources.seat(network(address), most)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn one_source_never_has_all_connections() {
        let sources = Seats::default();
        let seated = |text: &str| seat(&sources, text.parse().expect("an address"), 2);
        let seats: Vec<_> = (1..=2).map(|last| seated(&format!("2001:db8::{last}"))).collect();
        assert!(seats.iter().all(Option::is_some));
        assert!(seated("2001:db8::3").is_none(), "the same /64");
        assert!(seated("2001:db8:0:1::1").is_some());
        for proxy in ["127.0.0.1", "::1"] {
            let proxied: Vec<_> = (0..5).map(|_| seated(proxy)).collect();
            assert!(proxied.iter().all(Option::is_some), "{proxy}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let body =
            Body::from_stream(stream::once(async { Ok::<_, BoxError>(Bytes::from("{")) }).chain(stream::pending()));
        let begun = Instant::now();
        let read = axum::body::to_bytes(Body::from_stream(until(body.into_data_stream(), begun + BODY_WITHIN)), 100);
        let error = read.await.expect_err("it never ends").to_string();
        assert!(error.contains("took too long"), "{error}");
        assert_eq!(begun.elapsed(), BODY_WITHIN);
    }

    /// A server of one page that says when it is asked and waits to be let go.
    struct Slow {
        address: SocketAddr,
        serving: JoinSet<()>,
        asked: Arc<Notify>,
        go: Arc<Notify>,
    }

    async fn slow(shutdown: CancellationToken) -> Slow {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let page = {
            let (asked, go) = (Arc::clone(&asked), Arc::clone(&go));
            async move || {
                asked.notify_one();
                go.notified().await;
                "done"
            }
        };
        let router = Router::new().route("/", axum::routing::get(page));
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let mut serving = JoinSet::new();
        serving.spawn(Server { listener, door: None, router, metrics }.run(shutdown));
        Slow { address, serving, asked, go }
    }

    #[tokio::test]
    async fn at_the_end_an_answer_under_way_still_arrives_and_an_idle_connection_is_closed() {
        let shutdown = CancellationToken::new();
        let mut slow = slow(shutdown.clone()).await;
        let mut idle = TcpStream::connect(slow.address).await.expect("a connection");
        let mut busy = TcpStream::connect(slow.address).await.expect("a connection");
        busy.write_all(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n").await.expect("sent");
        slow.asked.notified().await;
        shutdown.cancel();
        let mut nothing = Vec::new();
        idle.read_to_end(&mut nothing).await.expect("its end");
        assert!(nothing.is_empty());
        slow.go.notify_one();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        assert!(slow.serving.join_next().await.is_some_and(|ended| ended.is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let slow = slow(CancellationToken::new()).await;
        for (before, within) in [("", FIRST_WITHIN), ("GET / HTTP/1.1\r\nHost: hub\r\n\r\n", HEAD_WITHIN)] {
            let mut client = TcpStream::connect(slow.address).await.expect("a connection");
            slow.go.notify_one();
            client.write_all(format!("{before}GET / HTTP/1.1\r\nHo").as_bytes()).await.expect("sent");
            let begun = Instant::now();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("its end");
            assert_eq!(begun.elapsed(), within, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_of_what_is_sent_is_cut_off_by_the_system() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let _there = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (here, _) = listener.accept().await.expect("a connection");
        prepare(&here);
        assert_eq!(SockRef::from(&here).tcp_user_timeout().expect("an option"), Some(TAKEN_WITHIN));
    }
}
