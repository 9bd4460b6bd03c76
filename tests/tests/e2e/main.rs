//! The whole system on real parts: hub, agents, engine, databases, network, browser.

mod bad_input;
mod chaos;
mod dashboard;
mod main_job;
mod quickstart;
mod scripts;
