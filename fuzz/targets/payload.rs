//! What comes from a plant: any payload is decoded or changed, or goes on as it came.

#![no_main]

use std::time::Instant;

use hyperfactory_bridge::sparkplug::{self, Message, Tables};
use hyperfactory_bridge::step::{DeadBandConfig, ScaleConfig, StepConfig, Steps};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut tables = Tables::in_memory();
    let number = Some("value".to_owned());
    let mut steps = Steps::new(&[
        StepConfig::Scale(ScaleConfig { field: number.clone(), factor: Some(2.0), ..ScaleConfig::default() }),
        StepConfig::DeadBand(DeadBandConfig { field: number, band: Some(1.0), ..DeadBandConfig::default() }),
        StepConfig::Pick(vec!["value".into(), "a.b".into()]),
    ])
    .expect("steps");
    let _ = steps.take("raw", bytes, Instant::now());
    let (birth, data) = bytes.split_at(bytes.len() / 2);
    for (kind, payload) in [("NBIRTH", birth), ("NDATA", data), ("NDEATH", birth), ("NDATA", data)] {
        let topic = format!("spBv1.0/g/{kind}/e");
        let decoded = sparkplug::decode(&mut tables, &Message { topic: &topic, payload, ..Message::default() });
        for reading in decoded.readings {
            let _ = steps.take(&reading.topic, &reading.payload, Instant::now());
        }
    }
});
