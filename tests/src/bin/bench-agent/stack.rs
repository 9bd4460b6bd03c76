//! Thirty containers that do a little, as most do.

use std::fmt::Write;

use anyhow::Result;
use hyperfactory_tests::rig::{Engine, Project, SOON, until};

/// How many there are.
pub(crate) const CONTAINERS: usize = PROJECTS * SERVICES;
/// How many of them have health checks.
pub(crate) const CHECKED: usize = CONTAINERS / 3;

/// The service of each project that is killed and started.
pub(crate) const ONE: &str = "worker-1";

const PROJECTS: usize = 5;
const SERVICES: usize = 6;

/// Starts them as five Compose projects, and waits until all checked ones are healthy.
pub(crate) fn up(engine: &Engine) -> Result<Vec<Project>> {
    let mut projects = Vec::new();
    for number in 1..=PROJECTS {
        let project = engine.project(&format!("bench-{number}"), &compose())?;
        project.up()?;
        projects.push(project);
    }
    let healthy = |engine: &Engine| -> Result<usize> {
        Ok(engine.run(&["ps", "--quiet", "--filter", "health=healthy"])?.lines().count())
    };
    until("healthy containers", 4 * SOON, || Ok((healthy(engine)? == CHECKED).then_some(())))?;
    Ok(projects)
}

/// Stops all but eight services.
pub(crate) fn leave_eight(projects: &[Project]) -> Result<()> {
    for (index, project) in projects.iter().enumerate() {
        let keep = 8_usize.saturating_sub(index * SERVICES).min(SERVICES);
        let names: Vec<String> = (keep..SERVICES).map(name).collect();
        if names.is_empty() {
            continue;
        }
        let mut arguments = vec!["rm", "--stop", "--force"];
        arguments.extend(names.iter().map(String::as_str));
        project.compose(&arguments)?;
    }
    Ok(())
}

/// One in three serves pages under a health check every 10 s; the others fetch from it now and then, so that
/// processor, memory, network and disk figures change as real ones do.
fn compose() -> String {
    let mut text = String::from("services:\n");
    for number in 0..SERVICES {
        let role = if is_web(number) {
            "    command: [sh, -c, 'mkdir /www; dd if=/dev/urandom of=/www/page bs=1k count=40; exec httpd -f -p 80 -h /www']\n    \
             healthcheck: {test: [CMD, wget, '-q', '-O', /dev/null, 'http://127.0.0.1/page'], interval: 10s}\n"
        } else {
            "    command: [sh, -c, 'while :; do wget -q -O /page http://web-0/page; sleep $$((RANDOM % 20 + 5)); done']\n"
        };
        // Writing to the string can't fail.
        let _ =
            write!(text, "  {}:\n    image: IMAGE\n    stop_signal: SIGKILL\n    mem_limit: 64m\n{role}", name(number));
    }
    text
}

fn is_web(number: usize) -> bool {
    number.is_multiple_of(3)
}

fn name(number: usize) -> String {
    if is_web(number) { format!("web-{number}") } else { format!("worker-{number}") }
}
