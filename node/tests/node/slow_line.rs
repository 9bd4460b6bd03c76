use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyperfactory_node as node;
use node::commands::{Job, Work};
use node::{Backlog, Commands, Recorder};
use protocol::command::{Action, Ending, Order};
use protocol::message::{CommandState, ToNode, to_node};
use protocol::telemetry::{Row, Schema};
use protocol::{CommandId, SpoolEpoch, Timestamp, metrics};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::hub::{self, Came, TestHub, now};
use crate::session::TestNode;

/// A line to a hub on which one node's datagrams go one after the other, with this long between two.
const EVERY: Duration = Duration::from_millis(2);
/// Datagrams that wait for the line; over it, they are lost, as a router loses them.
const QUEUE: usize = 16;

/// The line; it ends with its handle.
struct SlowLine {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl SlowLine {
    async fn to(hub: SocketAddr) -> Self {
        let (near, far) = (bound().await, bound().await);
        far.connect(hub).await.expect("a way to the hub");
        let address = near.local_addr().expect("bound");
        let mut tasks = JoinSet::new();
        tasks.spawn(carry(near, far));
        Self { address, _tasks: tasks }
    }
}

async fn bound() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket")
}

async fn carry(near: UdpSocket, far: UdpSocket) {
    let (mut out, mut back, mut node) = ([0; 2048], [0; 2048], None);
    let (mut waiting, mut turn) = (VecDeque::new(), tokio::time::interval(EVERY));
    loop {
        // An error tells of an earlier datagram that nobody took; it is lost, as others are.
        tokio::select! {
            Ok((length, from)) = near.recv_from(&mut out) => {
                node = Some(from);
                if waiting.len() < QUEUE {
                    waiting.push_back(out[..length].to_vec());
                }
            }
            Ok(length) = far.recv(&mut back) => if let Some(node) = node {
                let _ = near.send_to(&back[..length], node).await;
            },
            _ = turn.tick() => if let Some(datagram) = waiting.pop_front() {
                let _ = far.send(&datagram).await;
            },
        }
    }
}

#[tokio::test]
async fn a_command_and_all_it_puts_out_go_before_a_backlog_on_a_slow_line() {
    const PUT_OUT: usize = 200_000;
    const ROWS: i64 = 600;
    const SERIES: usize = 1_000;
    let hub = TestHub::start();
    let line = SlowLine::to(hub.address().parse().expect("an address")).await;

    let recorder = Recorder::new(Backlog::in_memory(SpoolEpoch(42), 64 << 20), 1);
    let targets = (0..SERIES).map(|number| format!("eth{number}").into()).collect();
    let schema = Arc::new(Schema::new(vec![(metrics::NETWORK_SENT.into(), targets)]).expect("a schema"));
    for at in 0..ROWS {
        // No codec makes these shorter.
        let values = (0..SERIES).map(|_| Some(i64::from(rand::random::<i32>()))).collect();
        recorder.record(&schema, Row { at: Timestamp::from_millis(at), values }).await;
    }
    let backlog = recorder.backlog().status().bytes;

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let work: Work = Arc::new(|job: Job| {
        Box::pin(async move {
            job.output.write(vec![b'x'; PUT_OUT]).await;
            Ending::new(CommandState::Succeeded, "done")
        })
    });
    let commands = Commands::start(None, Arc::new(|_| Ok(())), work, &tasks, stop.clone());
    let token = hub.token_at(&line.address.to_string());
    let mut node = TestNode::start_as(&token, recorder, |options| options.commands = Some(commands)).await;
    let telemetry = |came: &[(Came, usize)]| -> usize {
        came.iter().filter(|(what, _)| *what == Came::Telemetry).map(|(_, bytes)| bytes).sum()
    };
    // By then the line is full.
    hub.until("the backlog's first tenth", |seen| telemetry(&seen.came) as u64 > backlog / 10).await;
    hub.order(hub::Order::Send(drain()));
    let succeeded = i32::from(CommandState::Succeeded);
    let seen = hub.until("what came of it", |seen| seen.outcomes.iter().any(|one| one.state == succeeded)).await;

    let put_out: Vec<usize> = (0..seen.came.len()).filter(|at| seen.came[*at].0 == Came::Output).collect();
    let (first, last) = (put_out[0], put_out[put_out.len() - 1]);
    assert_eq!(
        seen.came[first..=last].iter().map(|(_, bytes)| bytes).sum::<usize>() - telemetry(&seen.came[first..=last]),
        PUT_OUT
    );
    let between = telemetry(&seen.came[first..=last]);
    assert!(between < PUT_OUT / 4, "{between} bytes of telemetry came between {PUT_OUT} of a command's output");
    let before = telemetry(&seen.came);
    assert!((before as u64) < backlog / 2, "{before} bytes of a backlog of {backlog} came before a command's end");
    node.stop().await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    hub.stop().await;
}

fn drain() -> ToNode {
    let id = CommandId::new(now(), rand::random());
    let deadline = now().plus(Duration::from_secs(600));
    let name = Action::Drain.name().as_str().to_owned();
    let command = Order::message(id, name, Action::Drain.to_bytes(), 0, (deadline, now()), deadline);
    ToNode { message: Some(to_node::Message::Command(command)) }
}
