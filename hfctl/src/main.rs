//! `hfctl`: the operators' command line for a Hyperfactory hub. Arguments and exit codes.

mod client;
mod command;
mod config;
mod failure;
mod output;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::Client;
use config::{Config, Files};
use failure::Failure;
use output::{Format, Output};

/// Asks and directs a Hyperfactory hub.
///
/// The hub's address and an API token come from `hfctl login`, or from HYPERFACTORY_HFCTL_URL and
/// HYPERFACTORY_HFCTL_TOKEN (or _TOKEN_FILE), which win. Without either, the hub of ./quickstart is asked.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused by the hub.
#[derive(Parser)]
#[command(name = "hfctl", version, disable_help_subcommand = true)]
struct Arguments {
    /// Configuration file [default: ~/.config/hyperfactory/hfctl.toml].
    #[arg(long, global = true, value_name = "FILE", env = "HYPERFACTORY_HFCTL_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Stores a hub's address and an API token for this user, after trying them.
    Login(command::login::Login),
    /// Tenants: the customers.
    #[command(subcommand)]
    Tenant(command::tenant::Tenant),
    /// Join tokens: each enrolls one node, once.
    #[command(subcommand)]
    Token(command::token::Token),
    /// Nodes: agents and bridges.
    #[command(subcommand)]
    Node(command::node::Node),
    /// Services on nodes: start, stop, restart, logs.
    #[command(subcommand)]
    Service(command::command::Service),
    /// Reads a service's log as it is written, or searches those that are kept.
    Logs(command::logs::Logs),
    /// Commands: what nodes are to do, and what came of it.
    #[command(subcommand)]
    Command(command::command::Command),
    /// Rollouts: the same command over many nodes, in waves.
    #[command(subcommand)]
    Rollout(command::rollout::Rollout),
    /// Keys of people who sign commands.
    #[command(subcommand)]
    OperatorKey(command::operator_key::OperatorKey),
    /// A tenant's Kafka plane: certificates for its brokers, and what its bridges may do there.
    #[command(subcommand)]
    Kafka(command::kafka::Kafka),
    /// What others have to trust, in PEM, and what waits to be signed.
    #[command(subcommand)]
    Trust(command::trust::Trust),
    /// Certificate authorities: from one to the next.
    #[command(subcommand)]
    Ca(command::ca::Ca),
    /// Certificates: what they say, and their renewal.
    #[command(subcommand)]
    Cert(command::cert::Cert),
    /// How long certificates live, and when they are renewed.
    #[command(subcommand)]
    Policy(command::policy::Policy),
    /// Alerts: what goes wrong, and what went.
    #[command(subcommand)]
    Alert(command::alert::Alert),
    /// The audit log: who did what.
    #[command(subcommand)]
    Audit(command::audit::Audit),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has read enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&format!("hfctl: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.output);
    let files = Files::of(arguments.config)?;
    let client = || Client::new(&Config::load(&files)?);
    match arguments.verb {
        Verb::Login(login) => login.run(&files, &mut output),
        Verb::Tenant(verb) => verb.run(&client()?, &mut output),
        Verb::Token(verb) => verb.run(&client()?, &mut output),
        Verb::Node(verb) => verb.run(&client()?, &mut output),
        Verb::Service(verb) => verb.run(&client()?, &mut output),
        Verb::Logs(logs) => logs.run(&client()?, &mut output),
        Verb::Command(verb) => verb.run(&client()?, &mut output),
        Verb::Rollout(verb) => verb.run(&client()?, &mut output),
        Verb::OperatorKey(verb) => verb.run(client, &mut output),
        Verb::Kafka(verb) => verb.run(&client()?, &mut output),
        Verb::Ca(verb) => verb.run(&client()?, &mut output),
        Verb::Trust(verb) => verb.run(&client()?, &mut output),
        Verb::Cert(verb) => verb.run(client, &mut output),
        Verb::Policy(verb) => verb.run(&client()?, &mut output),
        Verb::Alert(verb) => verb.run(&client()?, &mut output),
        Verb::Audit(verb) => verb.run(&client()?, &mut output),
    }
}
