//! A container's figures from the engine's stats API, for where its cgroup can't be read.
//!
//! Dear: the engine spends about as much on one answer as on anything else it does for the agent in an hour.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters::StatsOptions;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::cgroup::Figures;
use crate::container::ContainerId;

/// Not more often than this.
pub const EVERY: Duration = Duration::from_secs(30);
/// Longest wait for all answers: an answer waits for the engine's collector, about a second.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks about all `containers` side by side: one after another each would wait a second.
pub async fn poll(engine: bollard::Docker, containers: Vec<ContainerId>) -> HashMap<ContainerId, Figures> {
    let mut figures = HashMap::with_capacity(containers.len());
    let mut answers: FuturesUnordered<_> = containers.into_iter().map(|container| one(&engine, container)).collect();
    let gather = async {
        while let Some(answer) = answers.next().await {
            figures.extend(answer);
        }
    };
    if timeout(PATIENCE, gather).await.is_err() {
        tracing::debug!("the engine did not give all containers' figures in time");
    }
    drop(answers);
    figures
}

async fn one(engine: &bollard::Docker, container: ContainerId) -> Option<(ContainerId, Figures)> {
    let options = StatsOptions { stream: false, one_shot: true };
    let mut answers = std::pin::pin!(engine.stats(container.as_str(), Some(options)));
    match answers.next().await? {
        Ok(answer) => Some((container, read(&answer))),
        Err(error) => {
            tracing::debug!(?container, %error, "no figures from the engine");
            None
        }
    }
}

fn read(answer: &ContainerStatsResponse) -> Figures {
    let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let cpu = answer.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage);
    let memory = answer.memory_stats.as_ref().and_then(|memory| {
        let details = memory.stats.as_ref();
        // As `docker stats` does: version 1 of cgroups names it first, version 2 second.
        let reclaimable = details.and_then(|all| all.get("total_inactive_file").or_else(|| all.get("inactive_file")));
        Some(memory.usage?.saturating_sub(reclaimable.copied().unwrap_or(0)))
    });
    let network = answer.networks.as_ref().map(|networks| {
        networks.values().fold((0, 0), |(received, sent), network| {
            (received + whole(network.rx_bytes.unwrap_or(0)), sent + whole(network.tx_bytes.unwrap_or(0)))
        })
    });
    let block =
        answer.blkio_stats.as_ref().and_then(|block| block.io_service_bytes_recursive.as_ref()).map(|entries| {
            let sum = |wanted: &str| {
                let of = entries
                    .iter()
                    .filter(|entry| entry.op.as_deref().is_some_and(|op| op.eq_ignore_ascii_case(wanted)));
                of.map(|entry| whole(entry.value.unwrap_or(0))).sum()
            };
            (sum("read"), sum("write"))
        });
    Figures {
        cpu: cpu.map(|nanos| whole(nanos / 1_000_000)),
        memory: memory.map(|bytes| whole(bytes / 1024)),
        processes: answer.pids_stats.as_ref().and_then(|pids| pids.current).map(whole),
        received: network.map(|(received, _)| received),
        sent: network.map(|(_, sent)| sent),
        read: block.map(|(read, _)| read),
        written: block.map(|(_, written)| written),
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerBlkioStatEntry, ContainerNetworkStats};

    use super::*;

    #[test]
    fn an_answer_gives_the_same_figures_as_the_files() {
        let path = format!("{}/tests/captured/stats.json", env!("CARGO_MANIFEST_DIR"));
        let mut answer: ContainerStatsResponse = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let bare = Figures { cpu: Some(11_713), memory: Some(956), processes: Some(2), ..Figures::default() };
        assert_eq!(read(&answer), Figures { read: Some(0), written: Some(0), ..bare }, "without a network");

        let network = ContainerNetworkStats { rx_bytes: Some(1306), tx_bytes: Some(126), ..Default::default() };
        answer.networks = Some([("eth0".into(), network.clone()), ("eth1".into(), network)].into());
        let entry =
            |op: &str, value| ContainerBlkioStatEntry { op: Some(op.into()), value: Some(value), ..Default::default() };
        let entries = vec![entry("Read", 4096), entry("Write", 512), entry("Total", 4608), entry("read", 1)];
        answer.blkio_stats.as_mut().unwrap().io_service_bytes_recursive = Some(entries);
        let full = Figures { received: Some(2612), sent: Some(252), read: Some(4097), written: Some(512), ..bare };
        assert_eq!(read(&answer), full);
    }

    #[test]
    fn an_answer_with_holes_gives_what_it_has() {
        assert_eq!(read(&ContainerStatsResponse::default()), Figures::default());
    }
}
