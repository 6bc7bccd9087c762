//! Mechanism for `beam_deploy`: bytes, files, digests and sockets. No policy: Elixir decides.

pub mod error;

rustler::init!("Elixir.BeamDeploy.Native");
