//! Issues and judges the certificates of a Hyperfactory fleet.
