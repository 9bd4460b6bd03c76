//! The clock that deadlines are of: it goes on evenly however the machine's clock is set, also while the hub is not there.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::Timestamp;
use store::sqlx::{self, Row};
use store::{Database, StoreError};

use super::command_id;

/// Where the setting is that ties the clock to this boot of the machine.
const SETTING: &str = "commands.clock";

/// Milliseconds that nobody sets. They are near those of the wall clock, and differ by as much as that has jumped.
#[derive(Clone)]
pub struct SteadyClock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl SteadyClock {
    /// The clock of a hub: within one boot of the machine it goes on from where an earlier hub had it, whatever the wall
    /// clock shows by now; after another boot it begins at the wall clock's time, the only one there is, but never before
    /// the newest command: nodes count on the order of ids.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open(database: &Database, wall: Timestamp) -> Result<Self, StoreError> {
        let up = since_boot();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let row = sqlx::query("SELECT value FROM hub_settings WHERE name = $1")
            .bind(SETTING)
            .fetch_optional(database.reader())
            .await?;
        let stored = row.map(|row| row.try_get::<String, _>(0)).transpose()?;
        let now = match stored.as_deref().and_then(|text| going_on(text, &boot, up)) {
            Some(now) => now,
            None => {
                let newest: Option<String> =
                    sqlx::query("SELECT MAX(id) FROM commands").fetch_one(database.reader()).await?.try_get(0)?;
                let newest = newest.map(|id| command_id(&id)).transpose()?;
                let wall = newest.map_or(wall, |newest| wall.max(newest.made_at().plus(Duration::from_millis(1))));
                let mut transaction = database.begin_write().await?;
                sqlx::query(
                    "INSERT INTO hub_settings (name, value) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value",
                )
                .bind(SETTING)
                .bind(format!("{boot} {up} {}", wall.millis()))
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
                wall
            }
        };
        let began = Instant::now();
        Ok(Self(Arc::new(move || now.plus(began.elapsed()))))
    }

    /// A clock that shows what `now` gives.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for SteadyClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SteadyClock({})", self.now())
    }
}

/// The time by a setting of this boot.
fn going_on(setting: &str, boot: &str, up: i64) -> Option<Timestamp> {
    let mut parts = setting.split(' ');
    let (then, up_then, steady) =
        (parts.next()?, parts.next()?.parse::<i64>().ok()?, parts.next()?.parse::<i64>().ok()?);
    let same = !boot.is_empty() && then == boot && up_then <= up;
    same.then(|| Timestamp::from_millis(steady.saturating_add(up - up_then)))
}

/// Milliseconds since the machine has booted, sleep included (clock_gettime(2), CLOCK_BOOTTIME).
fn since_boot() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_boot_the_clock_goes_on_and_after_another_it_begins_anew() {
        assert_eq!(going_on("b1 1000 50000", "b1", 4_000), Some(Timestamp::from_millis(53_000)));
        assert_eq!(going_on("b1 1000 50000", "b2", 4_000), None);
        assert_eq!(going_on("b1 1000 50000", "b1", 900), None, "boot ids may repeat in copies of a machine");
        assert_eq!(going_on("", "", 4_000), None);
        assert_eq!(going_on(" 1000 50000", "", 4_000), None);
    }
}
