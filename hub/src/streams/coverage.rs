//! The proof that no number is missing: what the database has of a node's spools, from the tables alone.

use protocol::{NodeId, SpoolEpoch, Timestamp};
use store::sqlx::{self, Row};
use store::{Database, StoreError};

use super::Tables;

/// What is stored of one spool epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// The epoch.
    pub epoch: SpoolEpoch,
    /// When its first batch came.
    pub opened_at: Timestamp,
    /// The first number that counts: those before it were stored once, and deleted when their time was over.
    pub first: u64,
    /// The last number acknowledged to the node; `first` - 1 when there is none.
    pub through: u64,
    /// How many of them are stored.
    pub stored: u64,
    /// What the node itself gave up.
    pub lost: Vec<LostRange>,
    /// Numbers that are neither stored nor given up. There must be none.
    pub missing: Vec<(u64, u64)>,
    /// Numbers that are there twice. There must be none.
    pub doubled: Vec<(u64, u64)>,
}

/// Numbers a node could not deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Why: overflow, corrupt, disk_full, released, unknown.
    pub reason: String,
}

impl Coverage {
    /// Whether every number is accounted for, once.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.doubled.is_empty()
    }
}

/// Every spool epoch of `node`, oldest first.
pub(crate) async fn coverage(database: &Database, tables: &Tables, node: NodeId) -> Result<Vec<Coverage>, StoreError> {
    // One snapshot for all statements: compaction moves rows from table to table meanwhile.
    let mut snapshot = database.begin_read().await?;
    let streams = sqlx::query(tables.lives).bind(node.to_string()).fetch_all(&mut *snapshot).await?;
    let mut coverages = Vec::with_capacity(streams.len());
    for row in &streams {
        let id: i64 = row.try_get(0)?;
        let stored = sqlx::query(tables.stored).bind(id).fetch_all(&mut *snapshot).await?;
        let lost = sqlx::query(tables.lost_of).bind(id).fetch_all(&mut *snapshot).await?;
        let range = |row: &sqlx::any::AnyRow| -> Result<(u64, u64), sqlx::Error> {
            Ok((row.try_get::<i64, _>(0)? as u64, row.try_get::<i64, _>(1)? as u64))
        };
        let stored = stored.iter().map(range).collect::<Result<Vec<_>, _>>()?;
        let mut lost_ranges = Vec::with_capacity(lost.len());
        for row in &lost {
            let (first, last) = range(row)?;
            lost_ranges.push(LostRange { first, last, reason: row.try_get(2)? });
        }
        lost_ranges.sort_by_key(|range| range.first);
        let mut ranges: Vec<_> = lost_ranges.iter().map(|range| (range.first, range.last)).collect();
        let count = stored.iter().map(|(first, last)| last - first + 1).sum();
        ranges.extend(stored);
        let through = row.try_get::<i64, _>(3)? as u64;
        let first = row.try_get::<i64, _>(4)? as u64 + 1;
        let (missing, doubled) = account(first, through, ranges);
        coverages.push(Coverage {
            epoch: SpoolEpoch(row.try_get::<i64, _>(1)? as u64),
            opened_at: Timestamp::from_millis(row.try_get(2)?),
            first,
            through,
            stored: count,
            lost: lost_ranges,
            missing,
            doubled,
        });
    }
    Ok(coverages)
}

/// The numbers of `first..=through` in none of `ranges`, and those in more than one.
type Ranges = Vec<(u64, u64)>;

fn account(first: u64, through: u64, mut ranges: Ranges) -> (Ranges, Ranges) {
    ranges.sort_unstable();
    let (mut missing, mut doubled) = (Vec::new(), Vec::new());
    let mut next = first;
    for (start, end) in ranges {
        if start > next {
            missing.push((next, start - 1));
        }
        if start < next && next > first {
            doubled.push((start, end.min(next - 1)));
        }
        next = next.max(end + 1);
    }
    if next <= through {
        missing.push((next, through));
    }
    (missing, doubled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_counted_once() {
        let cases: [(u64, u64, Ranges, Ranges, Ranges); 6] = [
            (1, 0, vec![], vec![], vec![]),
            (1, 9, vec![(4, 6), (1, 3), (7, 9)], vec![], vec![]),
            (1, 9, vec![(1, 3), (5, 8)], vec![(4, 4), (9, 9)], vec![]),
            (1, 9, vec![(1, 5), (4, 9)], vec![], vec![(4, 5)]),
            (4, 9, vec![(4, 9)], vec![], vec![]),
            (4, 9, vec![], vec![(4, 9)], vec![]),
        ];
        for (first, through, ranges, missing, doubled) in cases {
            assert_eq!(account(first, through, ranges.clone()), (missing, doubled), "{ranges:?}");
        }
    }
}
