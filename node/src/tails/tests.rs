use super::*;
use protocol::Timestamp;

fn id() -> TailId {
    TailId::new(Timestamp::from_millis(1), [1; 10])
}

fn line(number: u32) -> TailLine {
    TailLine { number, text: b"pressure 7 bar".to_vec(), ..TailLine::default() }
}

fn taken(upload: TailUpload) -> TailLines {
    match upload.message {
        Some(tail_upload::Message::Lines(lines)) => lines,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_the_rate_is_left_out_in_one_piece_and_counted_in_its_place() {
    let (outbox, mut sent) = mpsc::channel(64);
    let mut lines = Lines::new(id(), outbox);
    for number in 0..10_000 {
        lines.now(14, || line(number));
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    lines.now(14, || line(10_000));
    lines.flush().await;
    let (mut next, mut gaps) = (0, Vec::new());
    while let Ok(upload) = sent.try_recv() {
        let batch = taken(upload);
        assert!(batch.lines.len() <= MAX_BATCH);
        for line in batch.lines {
            gaps.extend((line.dropped > 0).then_some(line.dropped));
            assert_eq!(u64::from(line.number), next + line.dropped, "the count says exactly what is missing");
            next = u64::from(line.number) + 1;
        }
        assert_eq!(batch.dropped, 0);
    }
    assert_eq!((next, gaps), (10_001, vec![10_000 - meter::LINES as u64]));
}

#[tokio::test(start_paused = true)]
async fn what_the_session_has_no_room_for_is_left_out_and_counted() {
    let (outbox, mut sent) = mpsc::channel(1);
    let mut lines = Lines::new(id(), outbox);
    for number in 0..3 {
        lines.now(14, || line(number));
        lines.flush().await;
    }
    let first = taken(sent.recv().await.unwrap());
    assert_eq!(first.count(), 1);
    lines.now(14, || line(3));
    lines.flush().await;
    let second = taken(sent.recv().await.unwrap());
    assert_eq!((second.lines.len(), second.lines[0].dropped, second.count()), (1, 2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_line_waits_for_others_only_so_long_and_the_end_waits_for_all() {
    let (outbox, mut sent) = mpsc::channel(4);
    let mut lines = Lines::new(id(), outbox);
    lines.begin().await;
    assert_eq!(taken(sent.recv().await.unwrap()).count(), 0);
    let began = Instant::now();
    lines.now(14, || line(0));
    lines.due().await;
    assert_eq!(began.elapsed(), GATHER);
    lines.end(TailEndReason::Complete, "").await;
    assert_eq!(taken(sent.recv().await.unwrap()).count(), 1);
    assert!(matches!(sent.recv().await.unwrap().message, Some(tail_upload::Message::End(_))));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_is_never_left_out() {
    let (outbox, mut sent) = mpsc::channel(1);
    let mut lines = Lines::new(id(), outbox);
    let write = async {
        for number in 0..5_000 {
            lines.earlier(line(number)).await;
        }
        lines.end(TailEndReason::Complete, "").await;
    };
    let read = async {
        let mut count = 0;
        while let Some(upload) = sent.recv().await {
            match upload.message {
                Some(tail_upload::Message::Lines(lines)) => {
                    assert!(lines.lines.iter().all(|line| line.dropped == 0));
                    count += lines.count();
                }
                _ => return count,
            }
        }
        panic!("no end");
    };
    assert_eq!(tokio::join!(write, read).1, 5_000);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_does_not_wait_for_what_is_written_now() {
    let (outbox, mut sent) = mpsc::channel(1);
    let mut lines = Lines::new(id(), outbox);
    lines.earlier(line(0)).await;
    lines.due().await;
    lines.flush().await;
    assert_eq!(taken(sent.recv().await.unwrap()).count(), 1);
}
