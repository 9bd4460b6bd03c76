//! The messages of `hyperfactory.proto`, as compiled.

#![allow(missing_docs, reason = "documented in hyperfactory.proto, the published contract")]

include!(concat!(env!("OUT_DIR"), "/hyperfactory.v1.rs"));
