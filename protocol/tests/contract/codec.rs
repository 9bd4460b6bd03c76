//! The telemetry codec: what goes in comes out, in how many bytes, and when a batch is refused.

use std::sync::Arc;

use proptest::prelude::*;
use protocol::Timestamp;
use protocol::telemetry::{CodecError, Decoder, Encoder, Kind, Metric, Row, Schema, SchemaError, Schemas, Unit};

/// Decodes `batches` in order and gives every row.
pub(crate) fn decoded(decoder: &mut Decoder, batches: &[Vec<u8>]) -> Result<Vec<Row>, CodecError> {
    let mut rows = Vec::new();
    for batch in batches {
        decoder.decode(batch, |_, at, values| rows.push(Row { at, values: values.to_vec() }))?;
    }
    Ok(rows)
}

fn metric(name: &str, kind: Kind) -> Metric {
    Metric { name: name.into(), unit: Unit::Bytes, kind, decimals: 0 }
}

fn schema(gauges: usize, counters: usize) -> Arc<Schema> {
    let targets = |count| (0..count).map(|number| format!("t{number}").into()).collect::<Vec<Box<str>>>();
    let metrics = vec![
        (metric("gauge", Kind::Gauge), targets(gauges)),
        (metric("counter", Kind::Counter), targets(counters)),
        (metric("second", Kind::Counter), targets(counters)),
    ];
    Arc::new(Schema::new(metrics).expect("good"))
}

fn row(at: i64, values: &[Option<i64>]) -> Row {
    Row { at: Timestamp::from_millis(at), values: values.to_vec() }
}

/// Bytes per sample of the delta batches of real samples, `rows` to a batch.
fn bytes_per_sample(rows: usize) -> f64 {
    let (schema, samples) = crate::host::samples().expect("a good fixture");
    let mut encoder = Encoder::new();
    let batches: Vec<_> = samples.chunks(rows).map(|rows| encoder.encode(&schema, rows, false)).collect();
    let bytes: Vec<_> = batches.iter().map(|batch| batch.bytes.clone()).collect();
    assert_eq!(decoded(&mut Decoder::default(), &bytes).expect("good"), samples);
    assert_eq!(batches.iter().filter(|batch| batch.key).count(), 1);
    let delta: usize = bytes.iter().skip(1).map(Vec::len).sum();
    delta as f64 / ((samples.len() - rows) * schema.len()) as f64
}

#[test]
fn a_real_host_takes_less_than_two_fifths_of_a_byte_per_sample() {
    let (single, four) = (bytes_per_sample(1), bytes_per_sample(4));
    assert!(single < 0.37, "{single}");
    assert!(four < 0.35, "{four}");
}

#[test]
fn a_key_batch_of_a_real_host_takes_less_than_four_bytes_per_series() {
    let (schema, samples) = crate::host::samples().expect("a good fixture");
    let key = Encoder::new().encode(&schema, &samples[..1], true).bytes;
    assert!(key.len() < 4 * schema.len(), "{}", key.len());
    assert_eq!(decoded(&mut Decoder::default(), &[key]).expect("alone"), samples[..1]);
}

#[test]
fn a_decoder_takes_16_bytes_per_series_and_little_more() {
    let (schema, samples) = crate::host::samples().expect("a good fixture");
    let mut decoder = Decoder::default();
    decoder.decode(&Encoder::new().encode(&schema, &samples[..1], true).bytes, |_, _, _| ()).expect("good");
    assert!(decoder.memory() <= 16 * schema.len() + 1_400, "{}", decoder.memory());
}

#[test]
fn a_silent_host_takes_a_few_bytes_per_batch() {
    let schema = schema(100, 50);
    let rows: Vec<Row> = (0..4_000).map(|second| row(second * 1_000, &[Some(7_000_000); 200])).collect();
    let mut encoder = Encoder::new();
    let batches: Vec<_> = rows.chunks(4).map(|rows| encoder.encode(&schema, rows, false).bytes).collect();
    assert!(batches.iter().skip(500).all(|batch| batch.len() <= 9), "{:?}", batches.last());
    assert_eq!(decoded(&mut Decoder::default(), &batches).expect("good"), rows);
}

#[test]
fn a_short_row_lacks_its_last_values() {
    let schema = schema(1, 1);
    let batch = Encoder::new().encode(&schema, &[row(0, &[Some(1)])], false).bytes;
    assert_eq!(decoded(&mut Decoder::default(), &[batch]).expect("good"), [row(0, &[Some(1), None, None])]);
}

#[test]
fn a_batch_of_no_rows_declares_the_schema() {
    let schema = schema(2, 1);
    let mut decoder = Decoder::default();
    let mut encoder = Encoder::new();
    decoder.decode(&encoder.encode(&schema, &[], false).bytes, |_, _, _| unreachable!()).expect("good");
    assert_eq!(decoder.schema(), Some(&schema));
    assert!(decoder.latest().is_none());
    let delta = encoder.encode(&schema, &[row(5, &[None, Some(2)])], false);
    assert!(!delta.key);
    decoder.decode(&delta.bytes, |_, _, _| ()).expect("good");
    let (at, values) = decoder.latest().expect("one row");
    assert_eq!((at.millis(), values.collect::<Vec<_>>()), (5, vec![None, Some(2), None, None]));
}

#[test]
fn a_changed_schema_forces_a_key_batch_and_an_equal_one_does_not() {
    let mut encoder = Encoder::new();
    assert!(encoder.encode(&schema(1, 1), &[], false).key);
    assert!(!encoder.encode(&schema(1, 1), &[], false).key);
    assert!(encoder.encode(&schema(1, 2), &[], false).key);
    assert!(encoder.encode(&schema(1, 2), &[], true).key);
}

#[test]
fn a_delta_batch_decodes_only_in_its_place() {
    let schema = schema(3, 1);
    let mut encoder = Encoder::new();
    let mut next = |key| encoder.encode(&schema, &[row(1, &[Some(4)])], key).bytes;
    let [key, first, second, again] = [next(true), next(false), next(false), next(true)];
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&first, |_, _, _| ()), Err(CodecError::NoKey));
    decoder.decode(&key, |_, _, _| ()).expect("alone");
    assert_eq!(decoder.decode(&second, |_, _, _| ()), Err(CodecError::OutOfOrder { expected: 1, found: 2 }));
    assert_eq!(decoder.decode(&first, |_, _, _| ()), Err(CodecError::NoKey), "nothing goes on after an error");
    decoder.decode(&again, |_, _, _| ()).expect("alone");
}

#[test]
fn decoders_share_equal_schemas() {
    let schemas = Arc::new(Schemas::default());
    let batch = Encoder::new().encode(&schema(5, 5), &[], true).bytes;
    let mut decoders = [Decoder::sharing(schemas.clone()), Decoder::sharing(schemas)];
    for decoder in &mut decoders {
        decoder.decode(&batch, |_, _, _| ()).expect("good");
    }
    let [first, second] = decoders.each_ref().map(|decoder| decoder.schema().expect("decoded"));
    assert!(Arc::ptr_eq(first, second));
}

#[test]
fn a_schema_tells_its_series() {
    let schema = schema(2, 1);
    assert_eq!(schema.len(), 4);
    let series: Vec<_> = schema.iter().map(|(metric, target)| format!("{}/{target}", metric.name)).collect();
    assert_eq!(series, ["gauge/t0", "gauge/t1", "counter/t0", "second/t0"]);
    for (index, name) in series.iter().enumerate() {
        let (metric, target) = schema.series(index).expect("in range");
        assert_eq!(format!("{}/{target}", metric.name), *name);
        assert_eq!(schema.index(&metric.name, target), Some(index));
    }
    assert!(schema.series(4).is_none());
    assert_eq!((schema.index("gauge", "t2"), schema.index("other", "t0")), (None, None));
}

#[test]
fn a_metric_without_targets_has_no_series() {
    let metrics = vec![
        (metric("a", Kind::Gauge), vec![]),
        (metric("b", Kind::Gauge), vec!["x".into()]),
        (metric("c", Kind::Gauge), vec![]),
    ];
    let schema = Schema::new(metrics).expect("good");
    assert_eq!(schema.series(0).map(|(metric, target)| (&*metric.name, target)), Some(("b", "x")));
    assert_eq!((schema.len(), schema.series(1).is_none()), (1, true));
}

#[test]
fn a_schema_that_repeats_itself_or_is_too_large_is_refused() {
    let one = |targets: Vec<Box<str>>| Schema::new(vec![(metric("m", Kind::Gauge), targets)]);
    assert!(matches!(one(vec!["a".into(), "a".into()]), Err(SchemaError::Target(_))));
    assert!(matches!(one(vec!["a".repeat(1_025).into()]), Err(SchemaError::Name(1_025))));
    assert!(matches!(one((0..32_769).map(|n| n.to_string().into()).collect()), Err(SchemaError::TooLarge { .. })));
    let twice = Schema::new(vec![(metric("m", Kind::Gauge), vec![]), (metric("m", Kind::Counter), vec![])]);
    assert!(matches!(twice, Err(SchemaError::Metric(_))));
}

#[test]
fn a_unit_of_a_newer_peer_survives() {
    let volt = Metric { name: "voltage".into(), unit: Unit::Other(77), kind: Kind::Gauge, decimals: 3 };
    let schema = Schema::new(vec![(volt, vec!["".into()])]).expect("good");
    let read = Schema::from_bytes(schema.as_bytes()).expect("good");
    assert_eq!(read.series(0).map(|(metric, _)| metric.unit), Some(Unit::Other(77)));
}

fn value() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![
        2 => Just(None),
        6 => (-5..5i64).prop_map(Some),
        3 => any::<i64>().prop_map(Some),
        2 => (0..64u32, -2..3i64).prop_map(|(shift, near)| Some((1i64 << shift).wrapping_add(near))),
        2 => prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), Just(i64::MIN + 1)].prop_map(Some),
    ]
}

fn time() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 1_790_000_000_000..1_790_000_100_000i64, 1 => any::<i64>(), 1 => Just(i64::MIN)]
}

proptest! {
    #[test]
    fn any_rows_survive_in_any_batches(
        gauges in 0..12usize,
        counters in 0..12usize,
        batches in prop::collection::vec((any::<bool>(), prop::collection::vec(
            (time(), prop::collection::vec(value(), 36)), 0..9)), 1..9),
    ) {
        let schema = schema(gauges, counters);
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::default();
        for (key, rows) in batches {
            let rows: Vec<Row> = rows.iter().map(|(at, values)| row(*at, &values[..schema.len()])).collect();
            let batch = encoder.encode(&schema, &rows, key).bytes;
            prop_assert_eq!(decoded(&mut decoder, &[batch]), Ok(rows));
        }
    }

    /// Long runs of one behaviour let the model settle, and then break with it.
    #[test]
    fn any_habit_can_be_broken(
        start in any::<i64>(), step in any::<i64>(), shift in 0..40u32, breaks in prop::collection::vec(value(), 4),
    ) {
        let schema = schema(1, 1);
        let mut value = start;
        let mut rows = Vec::new();
        for (run, broken) in breaks.iter().enumerate() {
            for number in 0..40 {
                value = value.wrapping_add((step >> shift) << (run * 3));
                rows.push(row(number * 10, &[Some(value), Some(value), Some(value ^ 1)]));
            }
            rows.push(row(0, &[*broken; 3]));
        }
        let mut encoder = Encoder::new();
        let batches: Vec<_> = rows.chunks(7).map(|rows| encoder.encode(&schema, rows, false).bytes).collect();
        prop_assert_eq!(decoded(&mut Decoder::default(), &batches), Ok(rows));
    }
}
