//! `kill -9` of the agent, the manager or the command line at random moments. Afterwards nothing is
//! left that should not be, and nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::command::{Done, Running};
use crate::support::docker;
use crate::support::mesh::{Mesh, small};
use crate::support::node::Node;
use crate::support::{eventually, so};

/// Kills, unless `MESHWORK_CHAOS_ROUNDS` says otherwise.
const ROUNDS: u32 = 50;
/// A run takes about that long, in milliseconds; the kill falls somewhere in it.
const LATEST_KILL: u64 = 800;
/// Looks, each some 100 ms long, after which a session that nobody was told of does not come.
const LATECOMER_LOOKS: u32 = 5;

#[test]
fn kills_at_random_moments_lose_nothing_and_leave_nothing() {
    if !docker::wanted() {
        return;
    }
    let mut chance = Chance(setting("MESHWORK_CHAOS_SEED").unwrap_or_else(clock));
    let rounds = setting("MESHWORK_CHAOS_ROUNDS").unwrap_or(ROUNDS.into());
    eprintln!(
        "again the same: MESHWORK_CHAOS_SEED={} MESHWORK_CHAOS_ROUNDS={rounds}",
        chance.0
    );

    let mut world = World::new();
    for number in 0..rounds {
        let round = Round::draw(number, &mut chance);
        eprintln!("{round:?}");
        world.mesh.ready(&["box"]);
        round.play(&mut world);
    }
    world.is_clean();
    world.forgets();
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, it is `{text}`")),
    )
}

fn clock() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(now.as_nanos() % u128::from(u64::MAX)).expect("the remainder fits")
}

/// Chance from a seed (`SplitMix64`).
struct Chance(u64);

impl Chance {
    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Manager,
    Cli,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Ends by itself after so many tenths of a second, with this code.
    Short { tenths: u64, code: u64 },
    /// Goes on until it is stopped. `struck`: the kill comes while it is being stopped.
    Long { struck: bool },
}

/// One session and one kill.
#[derive(Debug)]
struct Round {
    name: String,
    victim: Victim,
    /// From the start of the command, `run` or `stop`, to the kill.
    after: Duration,
    attached: bool,
    work: Work,
}

impl Round {
    fn draw(number: u64, chance: &mut Chance) -> Self {
        let victims = [Victim::Agent, Victim::Manager, Victim::Cli];
        let victim = victims[usize::try_from(chance.below(3)).expect("a small number")];
        let after = Duration::from_millis(chance.below(LATEST_KILL + 1));
        let attached = chance.below(2) == 0;
        let work = match chance.below(4) {
            0 => Work::Long {
                struck: chance.below(2) == 0,
            },
            n => Work::Short {
                tenths: (n - 1) * 3,
                code: chance.below(100),
            },
        };
        Self {
            name: format!("r{number}"),
            victim,
            after,
            attached,
            work,
        }
    }

    /// What the kernel does. It notes each of its starts in a file of its own.
    fn script(&self) -> String {
        let begin = format!("echo {0} >> /data/{0}; echo out-{0}; ", self.name);
        begin
            + &match self.work {
                Work::Short { tenths, code } => format!("sleep 0.{tenths}; exit {code}"),
                Work::Long { .. } => {
                    "trap 'exit 0' TERM; while true; do sleep 0.1; done".to_owned()
                }
            }
    }

    fn play(&self, world: &mut World) {
        let script = self.script();
        let mut options = vec![
            "--name",
            &*self.name,
            "--vol",
            "notes:/data",
            "--gpu",
            "40GB..",
        ];
        if !self.attached {
            options.push("-d");
        }
        let mut cli = world.mesh.start(&small(&options, &script));
        if !self.strikes_stop() {
            self.strike(world, &mut cli);
        }

        // An attached run of a long session ends with the session, which is stopped here.
        let stays = self.attached && matches!(self.work, Work::Long { .. });
        let (session, done) = if stays && !cli.was_killed() {
            self.is_known_or_given_up(world, &mut cli);
            let told = self.acknowledged(&cli.out(), &cli.err());
            let session = self.comes_to_its_end(world, told);
            (session, cli.finish())
        } else {
            let done = cli.finish();
            let told = self.acknowledged(&done.out, &done.err);
            (self.comes_to_its_end(world, told), done)
        };
        self.command_told_the_truth(&done, session.as_ref());

        eventually("no container", || {
            let left = docker::containers(&world.agent.id);
            so(left.is_empty(), left)
        });
        let starts = world.starts(&self.name);
        assert_eq!(
            starts,
            usize::from(session.is_some()),
            "starts of {self:?}: {session:?}"
        );
        world.ended.insert(self.name.clone(), session);
    }

    fn strikes_stop(&self) -> bool {
        self.work == Work::Long { struck: true }
    }

    /// Waits for the moment, and kills: the victim `Cli` is the command under way.
    fn strike(&self, world: &mut World, command: &mut Running) {
        std::thread::sleep(self.after);
        match self.victim {
            Victim::Agent => world.agent.strike(),
            Victim::Manager => world.mesh.manager.strike(),
            Victim::Cli => command.kill(),
        }
    }

    /// Whether the command has said that there is a session.
    fn acknowledged(&self, out: &str, err: &str) -> bool {
        let (told, start) = if self.attached {
            (err, "job s-")
        } else {
            (out, "s-")
        };
        told.lines().any(|line| line.starts_with(start))
    }

    /// Waits until an attached command has begun to follow its session, or has failed.
    fn is_known_or_given_up(&self, world: &World, cli: &mut Running) {
        eventually("a session or an error", || {
            let known = world.mesh.session(&self.name).is_some();
            so(known || cli.has_ended(), cli.err())
        });
    }

    /// Waits for the end of the session, if there is one, and says whether it is the right one.
    fn comes_to_its_end(&self, world: &mut World, acknowledged: bool) -> Option<Value> {
        // What a killed command has sent may still be on its way.
        let looks = if acknowledged { 1 } else { LATECOMER_LOOKS };
        let found = (0..looks).find_map(|_| world.mesh.session(&self.name));
        assert!(
            found.is_some() || !acknowledged,
            "acknowledged and lost: {self:?}"
        );
        let id = found?["session"].as_str().expect("an id").to_owned();
        let (reason, code) = match self.work {
            Work::Short { code, .. } => ("self-terminated", code),
            Work::Long { .. } => {
                world.mesh.reaches(&id, "running");
                assert_eq!(docker::containers(&world.agent.id), [&*id], "{self:?}");
                self.stops(world, &id);
                ("user-requested", 0)
            }
        };
        let ended = world.mesh.reaches(&id, "terminated");
        let seen = (&ended["reason"], &ended["exit_code"]);
        assert_eq!(seen, (&json!(reason), &json!(code)), "{self:?}: {ended}");
        Some(ended)
    }

    /// Stops a session; a stop that was acknowledged is not asked for again.
    fn stops(&self, world: &mut World, id: &str) {
        let mut stop = world.mesh.start(&["stop", id]);
        if self.strikes_stop() {
            self.strike(world, &mut stop);
        }
        if stop.finish().code != Some(0) {
            world.mesh.ok(&["stop", id]);
        }
    }

    /// A command that lived tells what became of the session: its code and its output, once.
    fn command_told_the_truth(&self, done: &Done, session: Option<&Value>) {
        if done.code.is_none() {
            assert_eq!(self.victim, Victim::Cli, "{self:?}: {done:?}");
            return;
        }
        let Some(session) = session else {
            assert!(matches!(done.code, Some(1..=4)), "{self:?}: {done:?}");
            return;
        };
        if !self.acknowledged(&done.out, &done.err) {
            assert_eq!(done.code, Some(4), "{self:?}: {done:?}");
        } else if self.attached {
            let code = session["exit_code"]
                .as_i64()
                .and_then(|code| i32::try_from(code).ok());
            assert_eq!(done.code, code, "{self:?}: {done:?}");
            assert_eq!(
                done.out,
                format!("out-{}\n", self.name),
                "{self:?}: {done:?}"
            );
        } else {
            assert_eq!(done.code, Some(0), "{self:?}: {done:?}");
            assert_eq!(done.out.trim(), session["session"], "{self:?}: {done:?}");
        }
    }
}

/// The mesh that is struck again and again.
struct World {
    agent: Node,
    mesh: Mesh,
    /// Every session so far, as it ended; none where the command failed before there was one.
    ended: BTreeMap<String, Option<Value>>,
    /// The agent as it was when nothing ran.
    idle: Value,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new();
        let agent = mesh.agent("box", 2);
        mesh.ready(&["box"]);
        let idle = slots(&mesh.node("box").expect("it is ready"));
        Self {
            agent,
            mesh,
            ended: BTreeMap::new(),
            idle,
        }
    }

    /// How often the kernel of a session has started.
    fn starts(&self, name: &str) -> usize {
        let owners = self.agent.home.join("agent/volumes");
        let Ok(mut owners) = fs::read_dir(owners) else {
            return 0;
        };
        let owner: PathBuf = owners.next().expect("one owner").unwrap().path();
        let notes = fs::read_to_string(owner.join("notes").join(name)).unwrap_or_default();
        notes.lines().count()
    }

    /// Nothing is held by what has ended, and the list tells the same ends as before.
    fn is_clean(&self) {
        eventually("all slots free", || {
            let node = self.mesh.node("box").map(|n| slots(&n));
            so(node.as_ref() == Some(&self.idle), node)
        });
        assert_eq!(docker::containers(&self.agent.id), Vec::<String>::new());
        assert_eq!(self.mesh.json(&["ps"]), json!([]));
        for (name, ended) in &self.ended {
            let now = self.mesh.session(name);
            assert_eq!(now.as_ref().map(fate), ended.as_ref().map(fate), "{name}");
        }
        let sessions = self.mesh.json(&["ps", "-a"]);
        let expected = self.ended.values().flatten().count();
        assert_eq!(sessions.as_array().unwrap().len(), expected, "{sessions}");
    }

    /// After `rm` nothing is left but the users' volumes.
    fn forgets(&self) {
        let ids: Vec<&str> = self
            .ended
            .values()
            .flatten()
            .filter_map(|s| s["session"].as_str())
            .collect();
        self.mesh.ok(&[&["rm"], &*ids].concat());
        eventually("no output kept", || {
            let kept = fs::read_dir(self.agent.home.join("agent/logs"))
                .unwrap()
                .count();
            so(kept == 0, kept)
        });
        assert_eq!(self.mesh.json(&["ps", "-a"]), json!([]));
        let mut left: Vec<_> = fs::read_dir(self.agent.home.join("agent"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["journal.redb", "logs", "volumes"]);
    }
}

/// What of a session never changes once it has ended.
fn fate(session: &Value) -> Value {
    let fields = [
        "session",
        "state",
        "reason",
        "exit_code",
        "started_at",
        "ended_at",
    ];
    fields.iter().map(|field| session[*field].clone()).collect()
}

/// What of a node says how much of it is free.
fn slots(node: &Value) -> Value {
    let fields = ["cpu_free", "memory_free", "vram_free", "kernels", "gpus"];
    fields.iter().map(|field| node[*field].clone()).collect()
}
