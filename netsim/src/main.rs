//! `meshwork-netsim`: runs scenarios against the mesh, and finds new ones that break it.

mod progress;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use meshwork_netsim::heap::Counting;
use meshwork_netsim::report::{self, Report};
use meshwork_netsim::run::{self, Plan};
use meshwork_netsim::scenario::{Scenario, ScenarioError};
use meshwork_netsim::search;
use progress::Progress;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Simulates the mesh, deterministically: the same seed gives the same events.
#[derive(Debug, Parser)]
#[command(name = "meshwork-netsim", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Where the scenarios lie
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"))]
    scenarios: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one scenario, a file, or `all`, and holds it against its bars
    Run(RunArgs),
    /// Runs every scenario that the mesh promises to hold, with all its seeds
    Holds {
        #[command(flatten)]
        seeds: SeedArgs,
    },
    /// Explores random scenarios, and shrinks what fails to a small scenario file
    Search {
        /// How long
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The first seed
        #[arg(long, default_value_t = 1)]
        first_seed: u64,
        /// Where the file of a failure goes
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Names the scenarios there are
    List,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A scenario's name, the path of a file, or `all`
    scenario: String,
    #[command(flatten)]
    seeds: SeedArgs,
    /// Writes everything that happens with the first seed to this file, and runs no other
    #[arg(long, conflicts_with_all = ["minutes", "check_twice"])]
    trace: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SeedArgs {
    /// How many seeds, instead of the scenario's own number
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Begins no more seeds of a scenario after so many minutes; the table says how many ran
    #[arg(long)]
    minutes: Option<u64>,
    /// Runs every seed twice and compares all that happened
    #[arg(long)]
    check_twice: bool,
    /// Smaller and shorter, as the scenarios' tables [ci] say
    #[arg(long)]
    ci: bool,
}

fn main() -> ExitCode {
    match start(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything held.
fn start(cli: &Cli) -> Result<bool, ScenarioError> {
    match &cli.command {
        Command::Run(args) => {
            let scenarios = named(&cli.scenarios, &args.scenario)?;
            match &args.trace {
                Some(path) => trace(&scenarios, &args.seeds, path),
                None => run_all(&scenarios, &args.seeds),
            }
        }
        Command::Holds { seeds } => {
            let mut scenarios = every(&cli.scenarios)?;
            scenarios.retain(|scenario| scenario.holds);
            run_all(&scenarios, seeds)
        }
        Command::Search {
            minutes,
            first_seed,
            out,
        } => Ok(look_for_failures(*minutes, *first_seed, out)),
        Command::List => {
            for scenario in every(&cli.scenarios)? {
                let mark = if scenario.holds { '*' } else { ' ' };
                say(&format!(
                    "{mark} {:<28} {}",
                    scenario.name, scenario.promises
                ));
            }
            say("* runs with `holds`");
            Ok(true)
        }
    }
}

fn run_all(scenarios: &[Scenario], args: &SeedArgs) -> Result<bool, ScenarioError> {
    let plan = Plan {
        first_seed: args.first_seed,
        seeds: args.seeds,
        jobs: args.jobs,
        budget: args
            .minutes
            .map(|minutes| Duration::from_secs(minutes * 60)),
        check_twice: args.check_twice,
    };
    let (mut rows, mut failures, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for scenario in scenarios {
        let scenario = &scaled(scenario, args.ci)?;
        let progress = Progress::new(scenario, plan.seeds.unwrap_or(scenario.seeds));
        let results = run::run(scenario, &plan, &|_, outcome| progress.ran(outcome))?;
        let report = Report::new(scenario, &results, args.ci);
        progress.ends(&results, if report.holds() { "holds" } else { "FAILED" });
        left.extend(report::go_on(scenario, &results, args.ci));
        rows.extend(report.rows);
        failures.extend(report.failures);
    }
    say(report::table(&rows).trim_end());
    for failure in &failures {
        say(&format!("\n{failure}"));
    }
    for left in &left {
        say(&format!("\n{left}"));
    }
    Ok(failures.is_empty())
}

/// Runs one seed and writes down everything.
fn trace(scenarios: &[Scenario], args: &SeedArgs, path: &Path) -> Result<bool, ScenarioError> {
    let unreadable = |source| ScenarioError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::create(path).map_err(unreadable)?;
    let mut file = BufWriter::new(file);
    let mut all_hold = true;
    for scenario in scenarios {
        let scenario = &scaled(scenario, args.ci)?;
        let outcome = run::run_once(scenario, args.first_seed, Some(&mut file))?;
        say(&format!(
            "{}, seed {}: {} events, trace hash {:016x}, written to {}",
            scenario.name,
            args.first_seed,
            outcome.events,
            outcome.trace_hash,
            path.display()
        ));
        let runs = vec![(args.first_seed, outcome)];
        let report = Report::new(scenario, &run::Results { runs, asked: 1 }, args.ci);
        say(report::table(&report.rows).trim_end());
        report.failures.iter().for_each(|failure| say(failure));
        all_hold &= report.holds();
    }
    file.flush().map_err(unreadable)?;
    Ok(all_hold)
}

fn scaled(scenario: &Scenario, is_ci: bool) -> Result<Scenario, ScenarioError> {
    if is_ci {
        scenario.scaled_for_ci()
    } else {
        Ok(scenario.clone())
    }
}

fn named(folder: &Path, name: &str) -> Result<Vec<Scenario>, ScenarioError> {
    if name == "all" {
        return every(folder);
    }
    let file = Path::new(name);
    let path = if file.extension().is_some() {
        file.to_owned()
    } else {
        folder.join(format!("{name}.toml"))
    };
    Ok(vec![Scenario::load(&path)?])
}

/// All scenarios that this build can run.
fn every(folder: &Path) -> Result<Vec<Scenario>, ScenarioError> {
    let mut scenarios = Scenario::load_all(folder)?;
    let all = scenarios.len();
    scenarios.retain(|scenario| run::is_built_in(scenario.kind));
    if scenarios.len() < all {
        let left_out = all - scenarios.len();
        eprintln!(
            "{left_out} scenarios with real nodes are left out: build with `--features world`"
        );
    }
    Ok(scenarios)
}

fn look_for_failures(minutes: u64, first_seed: u64, out: &Path) -> bool {
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    let found = search::search(first_seed, || Instant::now() < until, &|line| {
        eprintln!("{line}");
    });
    let Some(found) = found else {
        say("nothing broke");
        return true;
    };
    let path = out.join(format!("{}.toml", found.name));
    say(&format!("{}\n{}", found.text.trim_end(), found.problem));
    match std::fs::write(&path, &found.text) {
        Ok(()) => say(&format!(
            "written to {0}; see it again with\n    cargo run --release -p meshwork-netsim -- run {0} --seeds 1 --first-seed {1} --trace trace.txt",
            path.display(),
            found.seed
        )),
        Err(error) => eprintln!("error: {}: {error}", path.display()),
    }
    false
}

/// A line for the user. A reader that has gone away is no reason to panic.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
