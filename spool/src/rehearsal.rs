//! For tests: makes syncs fail on demand, and remembers what a crash would leave.
