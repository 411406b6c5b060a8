//! The gateways of a roll-out, counted once for all rules.

use std::collections::BTreeMap;

use crate::domain::{GatewayId, rollout::Target};

use super::{
    super::{
        member::{Away, Member, Progress, Standing},
        waves,
    },
    Situation,
};

/// Where the gateways of a roll-out stand.
#[derive(Debug, Default)]
pub struct Tally<'a> {
    /// Gateways that the selector matches and no other roll-out has, and those that a wave has reached.
    pub selected: usize,
    /// Of those, the ones that do not have the version by other means: what shares are shares of.
    pub all: usize,
    /// Reached, and serving what the plan wants.
    pub there: usize,
    /// Reached, and on the way.
    pub switching: usize,
    /// Reached, refused or not there in time, and why.
    pub failed: Vec<(&'a GatewayId, String)>,
    /// Reached, and of no account.
    pub away: usize,
    /// Gateways that cannot serve now, or may not be able to at any moment, because of the roll-out.
    pub unavailable: usize,
    /// Of those, the ones that are on the way, late ones among them; the others were broken by the version.
    pub on_the_way: usize,
    /// How many may be unavailable.
    pub most_unavailable: usize,
    /// How many the waves so far are to reach.
    pub quota: usize,
    /// Could be reached next, in the order of the roll-out.
    pub candidates: Vec<&'a Member>,
    /// Could be reached, but were broken before: caught up when all others are there.
    pub broken: Vec<&'a Member>,
    /// Would be candidates, but have only just gone.
    pub returning: usize,
    /// Not reached and not linked, or closed by a person.
    pub unreachable: usize,
    /// Where each gateway stands that a wave has reached.
    pub standings: BTreeMap<&'a GatewayId, Standing>,
}

impl<'a> Tally<'a> {
    /// Counts.
    pub fn new(situation: &Situation<'a>) -> Self {
        let mut tally = Self::default();
        for member in situation.fleet {
            match situation.plan.targets.get(&member.id) {
                Some(target) => tally.reached(situation, member, target),
                None => tally.not_reached(situation, member),
            }
        }
        let spec = &situation.spec.spec;
        tally.most_unavailable = waves::most_unavailable(spec.max_unavailable_percent, tally.selected);
        tally.quota = tally.quota_of(situation, situation.plan.wave as usize);
        tally.order(situation);
        tally
    }

    /// How many gateways have been reached when `wave` has.
    pub fn quota_of(&self, situation: &Situation<'_>, wave: usize) -> usize {
        situation.spec.spec.waves.get(wave).map_or(self.all, |wave| waves::quota(*wave, self.all))
    }

    /// Gateways that say something about the version: those that are away do not.
    pub fn counted(&self) -> usize {
        self.there + self.switching + self.failed.len()
    }

    /// How many more may become unavailable.
    pub fn room(&self) -> usize {
        self.most_unavailable.saturating_sub(self.unavailable)
    }

    fn reached(&mut self, situation: &Situation<'a>, member: &'a Member, target: &Target) {
        let standing = member.standing(target, situation.version(), situation.patience(), situation.now);
        self.selected += 1;
        self.all += 1;
        let switching = matches!(standing, Standing::Switching | Standing::Away(Away::Interrupted));
        let broken = matches!(standing, Standing::Failed(_))
            && member.online
            && target.previous.is_some()
            && member.serves().is_none();
        // What gave way to the version is being loaded again: give it the time that it would have had for the version.
        let in_time = situation.now.since(target.since) < situation.patience().timeout;
        let recovering = broken && in_time && member.recovers();
        self.on_the_way += usize::from(switching || recovering);
        self.unavailable += usize::from(switching || (broken && !target.late));
        match &standing {
            // It is a candidate again.
            Standing::Away(Away::Lost) => {
                self.all -= 1;
                self.selected -= 1;
                self.not_reached(situation, member);
            }
            // How late gateways fare is not held against the version.
            Standing::There | Standing::Switching | Standing::Failed(_) if target.late => {}
            Standing::There => self.there += 1,
            Standing::Switching => self.switching += 1,
            Standing::Failed(reason) => self.failed.push((&member.id, reason.clone())),
            Standing::Away(Away::Offline | Away::Closed | Away::Interrupted) => self.away += 1,
        }
        self.standings.insert(&member.id, standing);
    }

    fn not_reached(&mut self, situation: &Situation<'a>, member: &'a Member) {
        if !member.selected || member.claimed_by.is_some() {
            return;
        }
        self.selected += 1;
        let version = situation.version();
        let refused = |version: &super::super::member::Reported| version.progress == Progress::Failed;
        let failed = member.versions.iter().filter(|known| known.digest == *version).any(refused);
        // Whoever has the version by other means needs nothing, unless it failed there: then it is tried anew.
        if member.wants(Some(version)) && !failed {
            return;
        }
        self.all += 1;
        if member.reachable() {
            if member.healthy() { self.candidates.push(member) } else { self.broken.push(member) }
        } else if member.open && member.returning(situation.grace, situation.now) {
            self.returning += 1;
        } else {
            self.unreachable += 1;
        }
    }

    fn order(&mut self, situation: &Situation<'_>) {
        let place = |member: &&Member| (waves::place(situation.version(), &member.id), member.id.clone());
        self.candidates.sort_by_cached_key(place);
        self.broken.sort_by_cached_key(place);
        // Where all there is was broken before, there is nobody else to begin with.
        if self.candidates.is_empty() && self.returning == 0 && self.counted() == 0 {
            self.candidates = std::mem::take(&mut self.broken);
        }
    }
}
