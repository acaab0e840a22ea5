//! Under construction.

pub mod audit;
