//! Confidential sandboxes: four layers under one policy that keeps deciding.

pub mod doctor;
pub mod syscall;

// Calls the other layers make of it come with them.
#[allow(dead_code)]
mod sys;
