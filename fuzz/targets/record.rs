//! What a bridge's log, headers and routes are read from: any bytes are read or refused.

#![no_main]

use hyperfactory_bridge::filter::Filter;
use hyperfactory_bridge::header;
use hyperfactory_bridge::record::Record;
use hyperfactory_bridge::template::Template;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = Record::decode(bytes) {
        assert_eq!(Record::decode(&record.encoded()), Ok(record));
        assert!(Record::decode(&Record::doubled(bytes)).is_ok_and(|record| record.duplicate));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert!(header::parse_dropped(text).all(|(first, last)| 1 <= first && first <= last));
    let (first, rest) = text.split_once('\n').unwrap_or((text, "a/b"));
    if let Ok(filter) = first.parse::<Filter>() {
        let _ = filter.matches(rest);
        assert!(filter.covers(&filter));
    }
    if let Ok(template) = first.parse::<Template>() {
        let _ = template.fill(rest, "mqtt", '.');
    }
});
