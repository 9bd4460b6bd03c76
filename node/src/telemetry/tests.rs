use prost::Message;
use protocol::message::{EngineState, KafkaState, RouteStatus, ServiceHealth, ServiceState};
use protocol::telemetry::Decoder;
use protocol::{Sequence, SpoolEpoch, Timestamp, metrics};

use super::*;
use crate::backlog::Entry;

fn schema(targets: &[&str]) -> Arc<Schema> {
    let targets = targets.iter().map(|target| Box::from(*target)).collect();
    Arc::new(Schema::new(vec![(metrics::NETWORK_SENT.into(), targets)]).expect("a schema"))
}

fn row(at: i64, values: &[i64]) -> Row {
    Row { at: Timestamp::from_millis(at), values: values.iter().copied().map(Some).collect() }
}

fn service(name: &str, health: ServiceHealth) -> Service {
    let key = ServiceKey { stack: "shop".into(), service: name.into(), number: 1 };
    Service { key: Some(key), state: ServiceState::Running.into(), health: health.into(), ..Service::default() }
}

fn recorder() -> Recorder {
    Recorder::new(Backlog::in_memory(SpoolEpoch(7), 1 << 20), SAMPLES_PER_BATCH)
}

async fn stored(recorder: &Recorder) -> Vec<BatchBody> {
    let entries = recorder.backlog().read(Sequence::FIRST, 1 << 20).await.expect("readable");
    entries
        .iter()
        .map(|entry| match entry {
            Entry::Batch { body, key, .. } => {
                let body = BatchBody::decode(&**body).expect("a body");
                assert_eq!(body.key, *key);
                body
            }
            Entry::Lost { .. } => panic!("nothing is lost"),
        })
        .collect()
}

/// Reads batches as the hub does, from the first one.
fn rows(batches: &[BatchBody]) -> Vec<Row> {
    let (mut decoder, mut rows) = (Decoder::default(), Vec::new());
    for batch in batches.iter().filter(|batch| !batch.samples.is_empty()) {
        let on_row = |_: &Schema, at, values: &[Option<i64>]| rows.push(Row { at, values: values.to_vec() });
        decoder.decode(&batch.samples, on_row).expect("in order");
    }
    rows
}

#[tokio::test]
async fn four_samples_travel_in_one_batch_and_the_first_batch_is_a_key() {
    let (recorder, schema) = (recorder(), schema(&["eth0", "eth1"]));
    for at in 0..12 {
        recorder.record(&schema, row(at, &[at * 100, 5])).await;
    }
    let batches = stored(&recorder).await;
    assert_eq!(batches.iter().map(|batch| batch.key).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(rows(&batches), (0..12).map(|at| row(at, &[at * 100, 5])).collect::<Vec<_>>());
}

#[tokio::test]
async fn nodes_that_flushed_together_do_not_go_on_together() {
    let schema = schema(&["eth0"]);
    let mut first_batches = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let recorder = recorder();
        recorder.flush().await;
        for at in 0..12 {
            recorder.record(&schema, row(at, &[at])).await;
        }
        let lengths: Vec<usize> = stored(&recorder)
            .await
            .iter()
            .scan(Decoder::default(), |decoder, batch| {
                let mut rows = 0;
                decoder.decode(&batch.samples, |_, _, _| rows += 1).ok().map(|()| rows)
            })
            .collect();
        first_batches.insert(lengths[0]);
        assert!(lengths[1..].iter().all(|rows| *rows == SAMPLES_PER_BATCH), "{lengths:?}");
    }
    assert_eq!(first_batches, (1..=SAMPLES_PER_BATCH).collect());
}

#[tokio::test]
async fn a_change_is_stored_at_once_with_the_samples_gathered_so_far() {
    let (recorder, schema) = (recorder(), schema(&["eth0"]));
    recorder.record(&schema, row(1, &[10])).await;
    recorder.change(Change { services: vec![service("web", ServiceHealth::Healthy)], ..Change::default() }).await;
    recorder.change(Change { services: vec![service("web", ServiceHealth::Unhealthy)], ..Change::default() }).await;
    let batches = stored(&recorder).await;
    assert_eq!(batches.len(), 2);
    assert_eq!(rows(&batches), [row(1, &[10])]);
    assert_eq!(batches[1].services, [service("web", ServiceHealth::Unhealthy)]);
    assert!(batches[1].samples.is_empty());
}

#[tokio::test]
async fn what_is_known_already_is_no_change() {
    let recorder = recorder();
    let change = Change {
        services: vec![service("web", ServiceHealth::Healthy)],
        removed: vec![ServiceKey { stack: "shop".into(), service: "never".into(), number: 1 }],
        engine: Some(Engine { state: EngineState::Connected.into(), ..Engine::default() }),
    };
    recorder.change(change.clone()).await;
    recorder.change(change).await;
    assert_eq!(stored(&recorder).await.len(), 1);
}

#[tokio::test]
async fn a_complete_list_removes_what_is_not_on_it() {
    let recorder = recorder();
    let (web, db) = (service("web", ServiceHealth::Healthy), service("db", ServiceHealth::Healthy));
    recorder.replace_services(vec![web.clone(), db.clone()]).await;
    recorder.replace_services(vec![db.clone()]).await;
    let batches = stored(&recorder).await;
    assert_eq!(batches[1].removed, [web.key.expect("a key")]);
    assert_eq!(recorder.snapshot().services, [db]);
}

#[tokio::test]
async fn every_sample_goes_at_once_while_somebody_looks() {
    tokio::time::pause();
    let (recorder, schema) = (recorder(), schema(&["eth0"]));
    recorder.live_for(Duration::from_secs(30));
    recorder.record(&schema, row(1, &[1])).await;
    recorder.record(&schema, row(2, &[2])).await;
    assert_eq!(stored(&recorder).await.len(), 2);
    tokio::time::advance(Duration::from_secs(31)).await;
    recorder.record(&schema, row(3, &[3])).await;
    assert_eq!(stored(&recorder).await.len(), 2);
}

#[tokio::test]
async fn a_snapshot_decodes_alone_and_names_everything() {
    let (recorder, schema) = (recorder(), schema(&["eth0"]));
    recorder.change(Change { services: vec![service("web", ServiceHealth::Healthy)], ..Change::default() }).await;
    recorder.record(&schema, row(1, &[1])).await;
    recorder.record(&schema, row(2, &[2])).await;
    let snapshot = recorder.snapshot();
    assert!(snapshot.key);
    assert_eq!(rows(std::slice::from_ref(&snapshot)), [row(2, &[2])]);
    assert_eq!(snapshot.services, [service("web", ServiceHealth::Healthy)]);
    // It does not disturb the numbered batches.
    recorder.flush().await;
    assert_eq!(rows(&stored(&recorder).await), [row(1, &[1]), row(2, &[2])]);
}

#[tokio::test]
async fn a_new_schema_starts_a_new_key_batch_and_loses_no_row() {
    let recorder = recorder();
    let (one, two) = (schema(&["eth0"]), schema(&["eth0", "eth1"]));
    recorder.record(&one, row(1, &[1])).await;
    recorder.record(&two, row(2, &[1, 2])).await;
    recorder.flush().await;
    let batches = stored(&recorder).await;
    assert_eq!(batches.iter().map(|batch| batch.key).collect::<Vec<_>>(), [true, true]);
    assert_eq!(rows(&batches), [row(1, &[1]), row(2, &[1, 2])]);
}

#[tokio::test]
async fn deltas_after_a_key_batch_without_samples_decode() {
    // So small that key batches are asked for often.
    let recorder = Recorder::new(Backlog::in_memory(SpoolEpoch(7), 40 * 1024), SAMPLES_PER_BATCH);
    let schema = schema(&["eth0"]);
    recorder.change(Change { services: vec![service("web", ServiceHealth::Healthy)], ..Change::default() }).await;
    for at in 0..4 {
        recorder.record(&schema, row(at, &[at])).await;
    }
    for turn in 0..200 {
        // Far beyond the distance between key batches, with a change and no sample in each.
        let health = if turn % 2 == 0 { ServiceHealth::Unhealthy } else { ServiceHealth::Healthy };
        recorder.change(Change { services: vec![service("web", health)], ..Change::default() }).await;
    }
    for at in 4..8 {
        recorder.record(&schema, row(at, &[at])).await;
    }
    let batches = stored(&recorder).await;
    assert!(batches.iter().filter(|batch| batch.key).count() > 3);
    assert_eq!(rows(&batches), (0..8).map(|at| row(at, &[at])).collect::<Vec<_>>());
    let from = batches.iter().rposition(|batch| batch.key).expect("a key batch");
    assert_eq!(rows(&batches[from..]).last(), Some(&row(7, &[7])), "a reader may start at any key batch");
}

#[tokio::test]
async fn a_sample_that_does_not_fit_its_schema_is_left_out() {
    let (recorder, schema) = (recorder(), schema(&["eth0"]));
    recorder.record(&schema, row(1, &[1, 2])).await;
    recorder.record(&schema, row(2, &[1])).await;
    recorder.flush().await;
    assert_eq!(rows(&stored(&recorder).await), [row(2, &[1])]);
}

#[tokio::test]
async fn the_status_is_told_when_it_changes_and_not_with_every_batch() {
    let (recorder, schema) = (recorder(), schema(&["eth0"]));
    let mut told = Vec::new();
    for (at, offset) in [(1, 0), (2, 0), (3, 40), (4, 5_000)] {
        recorder.clock_measured(ClockReading { offset_ms: offset, delay_ms: 10 });
        recorder.record(&schema, row(at, &[1])).await;
        recorder.flush().await;
        told = stored(&recorder).await.iter().map(|batch| batch.status.is_some()).collect();
    }
    assert_eq!(told, [true, false, false, true]);
}

#[tokio::test]
async fn services_beyond_what_fits_a_batch_are_left_out_and_the_others_stay() {
    let recorder = recorder();
    let services = (0..2_000)
        .map(|index| Service { image: "x".repeat(300), ..service(&format!("web-{index:04}"), ServiceHealth::Healthy) });
    recorder.replace_services(services.collect()).await;
    let reported = recorder.snapshot().services.len();
    assert!((200..1_500).contains(&reported), "{reported}");
    assert_eq!(stored(&recorder).await[0].services.len(), reported);
}

#[tokio::test]
async fn how_a_bridge_stands_is_told_when_it_changes_and_its_routes_with_the_next_batch() {
    let (recorder, schema) = (recorder(), schema(&["eth0"]));
    let status = |kafka: KafkaState, last_ms| BridgeStatus {
        kafka: kafka.into(),
        routes: vec![RouteStatus { from: "a".into(), to: "b".into(), last_ms }],
        ..BridgeStatus::default()
    };
    recorder.bridge(status(KafkaState::Connected, 1)).await;
    recorder.bridge(status(KafkaState::Connected, 2)).await;
    let told = async || -> Vec<_> {
        let batches = stored(&recorder).await.into_iter();
        batches.filter_map(|batch| Some(*batch.status?.bridge?)).collect()
    };
    assert_eq!(told().await, [status(KafkaState::Connected, 1)], "a record that passed is no news");
    recorder.bridge(status(KafkaState::Refused, 2)).await;
    assert_eq!(told().await.last(), Some(&status(KafkaState::Refused, 2)));
    recorder.bridge(status(KafkaState::Refused, 3)).await;
    for at in 0..4 {
        recorder.record(&schema, row(at, &[at])).await;
    }
    assert_eq!(told().await.last(), Some(&status(KafkaState::Refused, 3)));
    assert_eq!(
        recorder.snapshot().status.and_then(|status| status.bridge),
        Some(Box::new(status(KafkaState::Refused, 3)))
    );
}
