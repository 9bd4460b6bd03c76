//! Nothing is lost, whatever is killed or cut.

use anyhow::Result;
use hyperfactory_tests::chaos;
use hyperfactory_tests::rig::Postgres;

fn prove(rounds: u32, seed: u64, database: Option<&str>) -> Result<()> {
    let outcome = chaos::run(rounds, seed, database)?;
    assert_eq!(outcome.rounds, rounds);
    assert!(
        outcome.hub_kills > rounds / 4 && outcome.agent_kills > rounds / 4 && outcome.cuts > rounds / 8,
        "{outcome:?}"
    );
    assert!(outcome.batches > u64::from(rounds), "only {} batches: nothing was under way", outcome.batches);
    assert_eq!((outcome.missing, outcome.doubled, outcome.lost), (0, 0, 0), "{outcome:?}");
    Ok(())
}

#[test]
fn no_batch_is_lost_or_counted_twice_over_100_rounds_on_sqlite() -> Result<()> {
    prove(100, 1, None)
}

#[test]
fn no_batch_is_lost_or_counted_twice_over_100_rounds_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    prove(100, 2, Some(database.url()))
}
