//! Mechanism for `beam_deploy`: bytes, files, digests and sockets. No policy: Elixir decides.
//!
//! Each file holds plain functions and, in a module `nif`, the thin wrappers that the VM calls.

pub mod archive;
pub mod beam;
pub mod elf;
pub mod error;
pub mod etf;
pub mod files;
pub mod process;
pub mod scan;
pub mod socket;
pub mod sys;

#[cfg(feature = "nif")]
rustler::init!("Elixir.BeamDeploy.Native");
