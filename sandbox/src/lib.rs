//! Confidential sandboxes: four layers under one policy that keeps deciding.

pub mod doctor;
pub mod syscall;

#[allow(unsafe_code)]
mod sys;
