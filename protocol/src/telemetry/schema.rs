//! What the columns of a row are: metrics, and the targets each is measured on.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::varint::{self, Reader};
use super::{CodecError, MAX_SERIES};

/// Longest metric name or target, in bytes.
const MAX_NAME: usize = 1024;
/// Most bytes of names and targets in one schema, front coding undone.
const MAX_TEXT: usize = 1024 * 1024;

/// One thing that is measured. Real value = integer / 10^decimals.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Metric {
    /// For example `memory.used`.
    pub name: Box<str>,
    /// What the real value counts.
    pub unit: Unit,
    /// A level, or a total that only grows.
    pub kind: Kind,
    /// Decimal places of the integers.
    pub decimals: u8,
}

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A plain number: things, or nothing at all.
    Count,
    /// A share of the whole: 1.0 is all of it.
    Ratio,
    /// Bytes.
    Bytes,
    /// 1024 bytes.
    Kibibytes,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// A unit of a newer peer, by its number.
    Other(u8),
}

/// How the values of a series relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A level that goes up and down.
    Gauge,
    /// A total that grows, and starts again from zero when what it counts starts again.
    Counter,
}

/// The series of one node: per metric, in order, one series for each of its targets.
///
/// Two schemas are equal when their encoded bytes are.
pub struct Schema {
    metrics: Vec<Column>,
    groups: Vec<Box<[Box<str>]>>,
    length: usize,
    bytes: Box<[u8]>,
}

/// A metric and where its series are.
struct Column {
    metric: Metric,
    group: usize,
    first: usize,
    /// It has the targets of the metric before.
    beside: bool,
}

impl Schema {
    /// Declares series: for each metric, one per target. Target `""` is the host itself. Metrics with the same
    /// targets in the same order share one declaration of them.
    ///
    /// # Errors
    /// [`SchemaError`] on a metric or target given twice, and over the limits.
    pub fn new(metrics: Vec<(Metric, Vec<Box<str>>)>) -> Result<Self, SchemaError> {
        let mut groups: Vec<Box<[Box<str>]>> = Vec::new();
        let mut numbers: HashMap<Vec<Box<str>>, usize> = HashMap::new();
        let mut columns = Vec::with_capacity(metrics.len());
        for (metric, targets) in metrics {
            let group = match numbers.get(&targets) {
                Some(group) => *group,
                None => {
                    groups.push(targets.clone().into_boxed_slice());
                    numbers.insert(targets, groups.len() - 1);
                    groups.len() - 1
                }
            };
            columns.push((metric, group));
        }
        let bytes = encode(&groups, &columns);
        Self::assemble(groups, columns, bytes.into_boxed_slice())
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no series.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The metric and target of series `index`, or `None` past the end.
    pub fn series(&self, index: usize) -> Option<(&Metric, &str)> {
        let column = &self.metrics[..self.metrics.partition_point(|column| column.first <= index)];
        // Metrics without targets start where the next one does; the last one that starts here has the series.
        let column = column.last()?;
        let target = self.groups[column.group].get(index - column.first)?;
        Some((&column.metric, target))
    }

    /// The place in a row of `metric` measured on `target`.
    pub fn index(&self, metric: &str, target: &str) -> Option<usize> {
        let column = self.metrics.iter().find(|column| &*column.metric.name == metric)?;
        let place = self.groups[column.group].iter().position(|known| &**known == target)?;
        Some(column.first + place)
    }

    /// Every metric, with its places in a row and the targets they belong to.
    pub fn metrics(&self) -> impl Iterator<Item = (&Metric, Range<usize>, &[Box<str>])> {
        self.metrics.iter().map(|column| {
            let targets = &*self.groups[column.group];
            (&column.metric, column.first..column.first + targets.len(), targets)
        })
    }

    /// Every series, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Metric, &str)> {
        self.metrics().flat_map(|(metric, _, targets)| targets.iter().map(move |target| (metric, &**target)))
    }

    /// What the codec must know: per metric its kind, its places in a row, and whether it has the targets of the
    /// metric before.
    pub(super) fn columns(&self) -> impl Iterator<Item = (Kind, Range<usize>, bool)> {
        self.metrics.iter().map(|column| {
            let places = column.first..column.first + self.groups[column.group].len();
            (column.metric.kind, places, column.beside)
        })
    }

    /// The declaration as it stands in a key batch.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads a declaration.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are not one, or go over the limits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader(bytes);
        let mut text = 0;
        let mut groups = Vec::new();
        for _ in 0..reader.count()? {
            let count = reader.count()?;
            let mut targets: Vec<Box<str>> = Vec::new();
            for _ in 0..count {
                let target = front_coded(&mut reader, targets.last().map_or("", |last| last), &mut text)?;
                targets.push(target);
            }
            groups.push(targets.into_boxed_slice());
        }
        let mut columns: Vec<(Metric, usize)> = Vec::new();
        for _ in 0..reader.count()? {
            let last = columns.last().map_or("", |(metric, _)| &metric.name);
            let name = front_coded(&mut reader, last, &mut text)?;
            let unit = Unit::from_number(reader.byte()?);
            let kind = if reader.byte()? == 1 { Kind::Counter } else { Kind::Gauge };
            let metric = Metric { name, unit, kind, decimals: reader.byte()? };
            let group = reader.number()?;
            if group >= groups.len() as u64 {
                return Err(CodecError::Group);
            }
            columns.push((metric, group as usize));
        }
        if !reader.0.is_empty() {
            return Err(CodecError::Trailing);
        }
        Ok(Self::assemble(groups, columns, bytes.into())?)
    }

    fn assemble(
        groups: Vec<Box<[Box<str>]>>,
        columns: Vec<(Metric, usize)>,
        bytes: Box<[u8]>,
    ) -> Result<Self, SchemaError> {
        let mut text = 0;
        for targets in &groups {
            let mut seen = HashSet::with_capacity(targets.len());
            for target in targets {
                text += checked(target)?;
                if !seen.insert(&**target) {
                    return Err(SchemaError::Target(target.chars().take(64).collect()));
                }
            }
        }
        let mut names = HashSet::with_capacity(columns.len());
        let mut metrics = Vec::with_capacity(columns.len());
        let mut length = 0usize;
        let mut before = None;
        for (metric, group) in columns {
            text += checked(&metric.name)?;
            if !names.insert(metric.name.clone()) {
                return Err(SchemaError::Metric(metric.name.chars().take(64).collect()));
            }
            metrics.push(Column { metric, group, first: length, beside: before == Some(group) });
            before = Some(group);
            length = length.saturating_add(groups[group].len());
        }
        if length > MAX_SERIES || text > MAX_TEXT {
            return Err(SchemaError::TooLarge { series: length, text });
        }
        Ok(Self { metrics, groups, length, bytes })
    }
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Schema {}

impl Hash for Schema {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.metrics().map(|(metric, _, targets)| (&metric.name, targets))).finish()
    }
}

impl Unit {
    fn number(self) -> u8 {
        match self {
            Self::Count => 0,
            Self::Ratio => 1,
            Self::Bytes => 2,
            Self::Kibibytes => 3,
            Self::Milliseconds => 4,
            Self::Seconds => 5,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Count,
            1 => Self::Ratio,
            2 => Self::Bytes,
            3 => Self::Kibibytes,
            4 => Self::Milliseconds,
            5 => Self::Seconds,
            other => Self::Other(other),
        }
    }
}

/// Schemas in use, so that the decoders of like nodes hold one between them.
#[derive(Default)]
pub struct Schemas {
    known: Mutex<HashMap<u64, Vec<Weak<Schema>>>>,
    hasher: RandomState,
}

impl Schemas {
    /// The schema with these bytes: one in use if there is one, or a new one.
    ///
    /// # Errors
    /// As [`Schema::from_bytes`].
    pub fn from_bytes(&self, bytes: &[u8]) -> Result<Arc<Schema>, CodecError> {
        let hash = self.hasher.hash_one(bytes);
        let find = |known: &HashMap<u64, Vec<Weak<Schema>>>| {
            known.get(&hash)?.iter().filter_map(Weak::upgrade).find(|schema| schema.as_bytes() == bytes)
        };
        if let Some(schema) = find(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(schema);
        }
        // Not under the lock: a large schema of one node must not hold up the others.
        let schema = Arc::new(Schema::from_bytes(bytes)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(schema) = find(&known) {
            return Ok(schema);
        }
        if known.len() == known.capacity() {
            // Before the map grows, let go of what nobody holds any more.
            known.retain(|_, schemas| {
                schemas.retain(|schema| schema.strong_count() > 0);
                !schemas.is_empty()
            });
        }
        known.entry(hash).or_default().push(Arc::downgrade(&schema));
        Ok(schema)
    }
}

/// A schema that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A metric stands twice.
    #[error("metric {0:?} is declared twice; declare it once, with all its targets")]
    Metric(String),
    /// A metric has a target twice.
    #[error("target {0:?} is declared twice for one metric; declare it once")]
    Target(String),
    /// A name is too long.
    #[error("a metric name or target of {0} bytes is over the limit of {MAX_NAME}")]
    Name(usize),
    /// Too much of it.
    #[error("{series} series with {text} bytes of names are over the limits of {MAX_SERIES} and {MAX_TEXT}")]
    TooLarge {
        /// Series declared.
        series: usize,
        /// Bytes of metric names and targets.
        text: usize,
    },
}

fn checked(name: &str) -> Result<usize, SchemaError> {
    if name.len() > MAX_NAME { Err(SchemaError::Name(name.len())) } else { Ok(name.len()) }
}

fn encode(groups: &[Box<[Box<str>]>], columns: &[(Metric, usize)]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(groups.len() as u64, &mut out);
    for targets in groups {
        varint::put(targets.len() as u64, &mut out);
        let mut last = "";
        for target in targets {
            put_front_coded(last, target, &mut out);
            last = target;
        }
    }
    varint::put(columns.len() as u64, &mut out);
    let mut last = "";
    for (metric, group) in columns {
        put_front_coded(last, &metric.name, &mut out);
        out.extend([metric.unit.number(), u8::from(metric.kind == Kind::Counter), metric.decimals]);
        varint::put(*group as u64, &mut out);
        last = &metric.name;
    }
    out
}

/// Bytes shared with the text before, then the number of the others, then those.
fn put_front_coded(last: &str, text: &str, out: &mut Vec<u8>) {
    let shared = last.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    varint::put(shared as u64, out);
    varint::put((text.len() - shared) as u64, out);
    out.extend(&text.as_bytes()[shared..]);
}

fn front_coded(reader: &mut Reader<'_>, last: &str, text: &mut usize) -> Result<Box<str>, CodecError> {
    let shared = reader.number()?;
    let own = reader.count()?;
    let own = reader.bytes(own)?;
    let shared = usize::try_from(shared).ok().and_then(|shared| last.as_bytes().get(..shared));
    let mut name = shared.ok_or(CodecError::Prefix)?.to_vec();
    name.extend(own);
    *text += name.len();
    if *text > MAX_TEXT {
        return Err(CodecError::Schema(SchemaError::TooLarge { series: 0, text: *text }));
    }
    String::from_utf8(name).map(String::into_boxed_str).map_err(|_| CodecError::Text)
}
