//! Frames over streams: whole, in order, within limits, and what happens to those who break that.

use hyperfactory_transport::{CloseCode, StreamError};
use protocol::frame::{FrameError, MAX_CONTROL, MAX_TELEMETRY};
use protocol::message::{Acknowledge, Batch};

use crate::rig::{Fleet, listen, raw_session, session, waits};

fn ack(through: u64) -> Acknowledge {
    Acknowledge { epoch: 9, through }
}

fn batch(sequence: u64, length: usize) -> Batch {
    Batch { epoch: 9, sequence, body: vec![sequence as u8; length] }
}

#[tokio::test]
async fn frames_cross_both_ways_in_order() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let (mut writer, mut reader) = node.open(MAX_CONTROL).await.expect("a stream");
    writer.send_all(&[ack(1), ack(2), ack(3)]).await.expect("sent");
    writer.send(&ack(4)).await.expect("sent");
    writer.finish().await.expect("finished");

    let (mut answers, mut questions) = at_hub.accept(MAX_CONTROL).await.expect("a stream");
    while let Some(question) = questions.recv::<Acknowledge>().await.expect("read") {
        answers.send(&ack(question.through * 10)).await.expect("sent");
    }
    answers.finish().await.expect("finished");
    let mut seen = Vec::new();
    while let Some(answer) = reader.recv::<Acknowledge>().await.expect("read") {
        seen.push(answer.through);
    }
    assert_eq!(seen, [10, 20, 30, 40]);
    assert!(matches!(writer.send(&ack(5)).await, Err(StreamError::Finished)));
}

#[tokio::test]
async fn a_frame_larger_than_every_window_crosses() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let big = batch(1, MAX_TELEMETRY - 64);
    let (mut writer, _reader) = node.open(MAX_TELEMETRY).await.expect("a stream");
    let receive = async {
        let (_writer, mut reader) = at_hub.accept(MAX_TELEMETRY).await.expect("a stream");
        reader.recv::<Batch>().await.expect("read")
    };
    let (sent, received) = tokio::join!(writer.send(&big), receive);
    sent.expect("sent");
    assert_eq!(received, Some(big));
}

#[tokio::test]
async fn a_message_over_the_limit_is_not_sent_and_the_stream_goes_on() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let (mut writer, _reader) = node.open(100).await.expect("a stream");
    let refused = writer.send(&batch(1, 200)).await;
    assert!(matches!(refused, Err(StreamError::Frame(FrameError::TooLarge { limit: 100, .. }))), "{refused:?}");
    assert!(writer.send_all(&[batch(2, 10), batch(3, 200)]).await.is_err(), "all or none");
    writer.send(&batch(4, 10)).await.expect("sent");

    let (_writer, mut reader) = at_hub.accept(100).await.expect("a stream");
    assert_eq!(reader.recv::<Batch>().await.expect("read").map(|batch| batch.sequence), Some(4));
}

#[tokio::test]
async fn a_send_given_up_halfway_tears_no_frame() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let (mut writer, _reader) = node.open(MAX_TELEMETRY).await.expect("a stream");
    let big = batch(1, 700_000);
    assert!(waits(writer.send(&big)), "larger than what the hub takes unread");
    let receive = async {
        let (_writer, mut reader) = at_hub.accept(MAX_TELEMETRY).await.expect("a stream");
        [reader.recv::<Batch>().await.expect("read"), reader.recv().await.expect("read")]
    };
    let small = batch(2, 3);
    let (sent, received) = tokio::join!(writer.send(&small), receive);
    sent.expect("sent");
    assert_eq!(received, [Some(big), Some(small)]);
}

#[tokio::test]
async fn a_read_given_up_halfway_loses_nothing() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (raw, at_hub) = raw_session(&fleet, &hub).await;
    let (mut send, _receive) = raw.open_bi().await.expect("a stream");
    send.write_all(&[11, 0x09, 9]).await.expect("written");
    let (_writer, mut reader) = at_hub.accept(MAX_CONTROL).await.expect("a stream");
    for _ in 0..3 {
        assert!(waits(reader.recv::<Acknowledge>()), "half a frame is no frame");
    }
    send.write_all(&[0, 0, 0, 0, 0, 0, 0, 0x10, 7]).await.expect("written");
    assert_eq!(reader.recv::<Acknowledge>().await.expect("read"), Some(ack(7)));
}

/// Sends raw bytes to the hub and ends the stream; gives what the hub's reader said, and how the hub closed.
async fn misbehave(bytes: &[u8]) -> (StreamError, quinn::ApplicationClose) {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (raw, at_hub) = raw_session(&fleet, &hub).await;
    let (mut send, _receive) = raw.open_bi().await.expect("a stream");
    send.write_all(bytes).await.expect("written");
    send.finish().expect("finished");
    let (_writer, mut reader) = at_hub.accept(MAX_CONTROL).await.expect("a stream");
    let error = reader.recv::<Acknowledge>().await.expect_err("a breach of the contract");
    let closed = raw.closed().await;
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { unreachable!("closed with a code: {closed}") };
    (error, close)
}

#[tokio::test]
async fn an_oversized_frame_closes_the_connection_with_its_code_and_reason() {
    let (error, close) = misbehave(&[0xff, 0xff, 0x7f, 1, 2, 3]).await;
    assert!(matches!(error, StreamError::Frame(FrameError::TooLarge { limit: MAX_CONTROL, .. })), "{error:?}");
    assert_eq!(close.error_code.into_inner(), u64::from(CloseCode::FrameTooLarge.number()));
    assert_eq!(close.reason, "a frame of 2097151 bytes is over this stream's limit of 65536");
}

#[tokio::test]
async fn a_torn_frame_closes_the_connection_as_malformed() {
    let (error, close) = misbehave(&[11, 0x09, 1]).await;
    assert!(matches!(error, StreamError::Torn), "{error:?}");
    assert_eq!(close.error_code.into_inner(), u64::from(CloseCode::Malformed.number()));
    assert_eq!(close.reason, "the stream ended within a frame");
}

#[tokio::test]
async fn a_malformed_message_or_length_closes_the_connection_as_malformed() {
    for bytes in [&[3, 0xff, 0xff, 0xff][..], &[0x80, 0x80, 0x80, 0x80, 1]] {
        let (error, close) = misbehave(bytes).await;
        assert!(matches!(error, StreamError::Frame(FrameError::Malformed(_) | FrameError::BadLength)), "{error:?}");
        assert_eq!(close.error_code.into_inner(), u64::from(CloseCode::Malformed.number()));
    }
}

#[tokio::test]
async fn a_stream_given_up_is_no_torn_frame() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (raw, at_hub) = raw_session(&fleet, &hub).await;
    let (mut send, mut receive) = raw.open_bi().await.expect("a stream");
    send.write_all(&[11, 0x09]).await.expect("written");
    let (mut writer, mut reader) = at_hub.accept(MAX_CONTROL).await.expect("a stream");
    send.reset(quinn::VarInt::from_u32(1)).expect("reset");
    receive.stop(quinn::VarInt::from_u32(1)).expect("stopped");
    assert!(matches!(reader.recv::<Acknowledge>().await, Err(StreamError::Reset)));
    let stopped = async {
        loop {
            if let Err(error) = writer.send(&ack(1)).await {
                break error;
            }
            tokio::task::yield_now().await;
        }
    };
    assert!(matches!(stopped.await, StreamError::Stopped));
    assert_eq!(at_hub.close_reason(), None);
}

#[tokio::test]
async fn a_finished_answer_survives_the_close_after_it() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let (mut writer, mut reader) = node.open(MAX_CONTROL).await.expect("a stream");
    writer.send(&ack(1)).await.expect("sent");
    let (mut answers, _questions) = at_hub.accept(MAX_CONTROL).await.expect("a stream");
    let answer = async {
        answers.send(&ack(2)).await.expect("sent");
        answers.finish().await.expect("finished");
        answers.delivered().await.expect("delivered");
        at_hub.close(CloseCode::Done, "");
    };
    let (received, ()) = tokio::join!(reader.recv::<Acknowledge>(), answer);
    assert_eq!(received.expect("read"), Some(ack(2)));
}

#[tokio::test]
async fn a_node_has_four_streams_and_a_hub_opens_none() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (node, at_hub) = session(&fleet, &hub).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(node.open(MAX_CONTROL).await.expect("a stream"));
    }
    assert!(waits(node.open(MAX_CONTROL)));
    assert!(waits(at_hub.open(MAX_CONTROL)));

    let (raw, _at_hub) = raw_session(&fleet, &hub).await;
    assert!(waits(raw.open_uni()), "no use for them");
    assert_eq!(raw.max_datagram_size(), None, "nor for datagrams");
}

#[tokio::test]
async fn a_peer_that_only_sends_makes_the_hub_hold_a_quarter_of_a_mebibyte() {
    let fleet = Fleet::new();
    let hub = listen(&fleet);
    let (raw, _at_hub) = raw_session(&fleet, &hub).await;
    let (mut streams, mut taken) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (mut send, receive) = raw.open_bi().await.expect("a stream");
        let mut of_this = 0;
        while let Some(written) = now(send.write(&[0; 8192])) {
            of_this += written.expect("written");
        }
        streams.push((send, receive));
        taken.push(of_this);
    }
    assert_eq!(taken, [131_072, 131_072, 0, 0]);
}

fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
