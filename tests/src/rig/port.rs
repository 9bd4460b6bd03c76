//! A TCP port for a program that has to be told which.

use std::net::{Ipv4Addr, TcpListener};

/// Below those that the kernel hands out by itself: a port stays its program's while that is down.
const PORTS: std::ops::Range<u16> = 12_000..20_000;

/// One of loopback's that nobody listens on now, nor anybody else by chance.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
