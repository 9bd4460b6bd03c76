//! A durable, bounded segment log on disk.
