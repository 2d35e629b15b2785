//! The command line: its grammar, and one file per noun that carries the commands out.

#![allow(
    clippy::doc_markdown,
    reason = "clap shows doc comments on terminals, as they are"
)]

mod bus;
mod client;
mod demo;
mod docker;
mod doctor;
mod down;
mod error;
mod init;
mod join;
mod log;
mod mesh;
mod node;
mod out;
mod peer;
mod rpc;
mod run;
mod session;
mod status;
mod token;
mod up;
mod values;
mod whoami;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::home::{Home, HomeError, Who};
use error::{CliError, Code, EXIT_ERROR};
use out::{Format, Out};

/// Joins machines into one encrypted mesh and runs containers on the one that fits.
#[derive(Debug, Parser)]
#[command(
    name = "meshwork",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 ok, 1 error, 2 not placed, 3 denied, 4 unreachable; `run` and \
                        `exec` end with the container's own code."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Print ids only, and no remarks
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Data folder [default: ~/.meshwork]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "MESHWORK_HOME",
        hide_env_values = true
    )]
    home: Option<PathBuf>,
    /// Node to call: its id, its address, or ID@HOST:PORT [default: this machine's node, else a known manager]
    #[arg(
        long,
        global = true,
        value_name = "NODE",
        env = "MESHWORK_SERVER",
        hide_env_values = true
    )]
    server: Option<String>,
    /// No colours (NO_COLOR does the same)
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a mesh: its authority, its pre-shared key, this node and you as its first user
    Init(init::InitArgs),
    /// Run this machine's node; make a mesh first where there is none
    Up(up::UpArgs),
    /// Stop the node that runs from this data folder; its containers go on
    Down,
    /// Print the one line that lets a machine or a person join
    Invite(join::InviteArgs),
    /// Join a mesh with a ticket, and run the node
    Join(join::JoinArgs),
    /// Look at the nodes of the mesh
    #[command(subcommand, arg_required_else_help = true)]
    Node(node::NodeCommand),
    /// Look at the connections of a node
    #[command(subcommand, arg_required_else_help = true)]
    Peer(peer::PeerCommand),
    /// The mesh as a whole: who sees whom, and its pre-shared key
    #[command(subcommand, arg_required_else_help = true)]
    Mesh(mesh::MeshCommand),
    /// Remote procedure calls: list what a node serves, call it with JSON
    #[command(subcommand, arg_required_else_help = true)]
    Rpc(rpc::RpcCommand),
    /// Run a container on a node that fits
    Run(run::RunArgs),
    /// List sessions
    Ps(session::PsArgs),
    /// Show a session's output
    Logs(session::LogsArgs),
    /// Run a command in a session
    Exec(session::ExecArgs),
    /// Stop sessions
    Stop(session::StopArgs),
    /// Forget sessions that ended
    Rm(session::RmArgs),
    /// Show how the called node stands
    Status,
    /// Check this machine: keys, mesh, clock, containers, GPUs
    Doctor,
    /// Show who you and this machine's node are in the mesh
    Whoami,
    /// Permission tokens
    #[command(subcommand, arg_required_else_help = true)]
    Token(token::TokenCommand),
    /// The event bus, which programs build in: how fast it is here
    #[command(subcommand, arg_required_else_help = true)]
    Bus(bus::BusCommand),
    /// Logs on this machine's disk: append, read, follow, check
    #[command(subcommand, arg_required_else_help = true)]
    Log(log::LogCommand),
    /// Show everything on this machine alone, in a temporary folder
    Demo,
    /// Ask the GPU driver from a process that may hang (called by the agent)
    #[command(hide = true)]
    ProbeGpus,
}

/// What every command is given.
struct Context {
    home: Home,
    out: Out,
    server: Option<String>,
}

/// Reads the command line, does what it says, and tells the exit code.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return mistyped(&error);
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            if error.message.is_empty() {
                return error.code.exit().into();
            }
            #[expect(
                clippy::print_stderr,
                reason = "the one place where errors are printed"
            )]
            {
                eprintln!("{error}");
            }
            error.code.exit().into()
        }
    }
}

/// What clap says. Help and version arrive as errors, too. A mistyped line is E100; clap's own exit
/// code for it, 2, means "not placed" here.
fn mistyped(error: &clap::Error) -> ExitCode {
    // That list names what is hidden, too.
    let text = error.render().to_string();
    let lines = text.split_inclusive('\n');
    let text: String = lines
        .filter(|line| !line.starts_with("  [subcommands: "))
        .collect();
    if let Some(text) = text.strip_prefix("error: ") {
        #[expect(
            clippy::print_stderr,
            reason = "errors of the command line are printed here"
        )]
        {
            eprint!("error[{}] {text}", Code::USAGE);
        }
        return EXIT_ERROR.into();
    }
    // Nothing can be done about an output that is closed.
    let _ = error.print();
    if error.use_stderr() {
        EXIT_ERROR.into()
    } else {
        ExitCode::SUCCESS
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    let Cli { global, command } = cli;
    if matches!(command, Command::ProbeGpus) {
        let status = meshwork_agent::probe_main();
        return Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let context = Context {
        home: Home::new(data_folder(global.home)?),
        out: Out::new(global.output, global.quiet, global.no_color),
        server: global.server,
    };
    start_log(match &command {
        Command::Up(args) => args.log,
        Command::Join(args) => args.log,
        _ => false,
    });
    let done = ExitCode::SUCCESS;
    match command {
        Command::Init(args) => init::init(&context, &args).map(|()| done),
        Command::Token(command) => token::token(&context, command).map(|()| done),
        Command::Up(args) => up::up(&context, &args).map(|()| done),
        Command::Down => down::down(&context).map(|()| done),
        Command::Join(args) => join::join(&context, &args).map(|()| done),
        Command::Bus(command) => bus::bus(&context, &command).map(|()| done),
        Command::Log(command) => log::log(&context, &command).map(|()| done),
        Command::Demo => demo::demo(&context).map(|()| done),
        Command::Doctor => doctor::doctor(&context).map(|()| done),
        Command::Whoami => whoami::whoami(&context).map(|()| done),
        Command::Invite(args) => {
            client::with(&context, async |c| join::invite(c, args).await).map(|()| done)
        }
        Command::Node(command) => {
            client::with(&context, async |c| node::node(c, command).await).map(|()| done)
        }
        Command::Peer(command) => {
            client::with(&context, async |c| peer::peer(c, command).await).map(|()| done)
        }
        Command::Rpc(command) => {
            client::with(&context, async |c| rpc::rpc(c, command).await).map(|()| done)
        }
        Command::Mesh(command) => mesh::mesh(&context, command).map(|()| done),
        Command::Run(args) => client::with(&context, async |c| run::run(c, args).await),
        Command::Ps(args) => {
            client::with(&context, async |c| session::ps(c, args).await).map(|()| done)
        }
        Command::Logs(args) => {
            client::with(&context, async |c| session::logs(c, args).await).map(|()| done)
        }
        Command::Exec(args) => client::with(&context, async |c| session::exec(c, args).await),
        Command::Stop(args) => {
            client::with(&context, async |c| session::stop(c, args).await).map(|()| done)
        }
        Command::Rm(args) => {
            client::with(&context, async |c| session::remove(c, args).await).map(|()| done)
        }
        Command::Status => client::with(&context, async |c| status::status(c).await).map(|()| done),
        Command::ProbeGpus => Ok(done),
    }
}

fn data_folder(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    given
        .or_else(|| std::env::home_dir().map(|home| home.join(".meshwork")))
        .ok_or_else(|| CliError::new(Code::VALUE, "this user has no home folder").fix("--home DIR"))
}

/// Logs go to standard error. `RUST_LOG` decides, else warnings only, or with `--log` the node's
/// own story.
fn start_log(story: bool) {
    use tracing_subscriber::EnvFilter;
    // An address of a family that this machine has no way out for is no news: others are tried.
    let default = if story {
        "info,quinn_udp=error"
    } else {
        "warn,quinn_udp=error"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

impl From<HomeError> for CliError {
    fn from(error: HomeError) -> Self {
        let (code, fix) = match &error {
            HomeError::NoMesh(_) => (
                Code::NO_MESH,
                Some("meshwork init, or meshwork join TICKET"),
            ),
            HomeError::NoNode(_) => (
                Code::NO_MESH,
                Some(
                    "ask an admin for a ticket (meshwork invite --role agent), then here: meshwork join TICKET",
                ),
            ),
            HomeError::Joined(_, Who::Node) => (
                Code::MESH_EXISTS,
                Some("meshwork up runs it; for a second one use another folder: --home DIR"),
            ),
            HomeError::Joined(_, Who::User) => (
                Code::MESH_EXISTS,
                Some(
                    "you are in: meshwork node ls; for a second one use another folder: --home DIR",
                ),
            ),
            HomeError::NoUser(_) => (
                Code::NO_MESH,
                Some(
                    "on a machine of the mesh: meshwork invite --role user; here: meshwork join TICKET",
                ),
            ),
            HomeError::Exists(_) => (Code::MESH_EXISTS, Some("use another folder: --home DIR")),
            HomeError::Running(_) => (
                Code::RUNNING,
                Some("meshwork down stops it; for a second one use another folder: --home DIR"),
            ),
            HomeError::Secret(_) | HomeError::Psk(_) | HomeError::Token { .. } => {
                (Code::KEY_FILE, None)
            }
            HomeError::Toml { .. } => (Code::CONFIG, None),
            HomeError::Io { .. } => (Code::IO, None),
        };
        let error = Self::new(code, error);
        match fix {
            Some(fix) => error.fix(fix),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }
}
