//! How this node stands to the others: how far behind, whom it hears, whether its rows are theirs.

use std::time::Duration;

/// From how many links on, of those that it should have, a node is part of its cluster: half.
const HEARD_PART: usize = 2;

/// How a node stands to the others, as of a second ago at most.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Standing {
    /// For how long the oldest version that is missing here has been known to exist. Zero: none is.
    pub lag: Duration,
    /// Versions that some peer holds and this node does not, and of how many origins they are.
    pub versions_behind: u64,
    pub origins_behind: usize,
    /// Neighbours that said something of late, and how many there should be.
    pub links_heard: usize,
    pub links_wanted: usize,
    /// Whether fewer than half of them have been heard for some time.
    pub is_cut_off: bool,
    /// Whether it takes over all rows of another node: its own are a mixture meanwhile.
    pub is_rejoining: bool,
    /// Members that hold the same versions and have other rows.
    pub unequal: usize,
    /// Rows of this node that were not what the others had, and were mended.
    pub mended: u64,
    /// What keeps changes of other nodes from being written, if something does.
    pub apply_error: Option<String>,
    /// Origins that are set aside, since what they wrote cannot be written here.
    pub set_aside: usize,
}

/// Why a node should not be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    /// One word, for programs.
    pub code: &'static str,
    /// A sentence, for people.
    pub text: String,
}

impl Standing {
    /// Tells whether so few links are too few.
    pub fn are_few(heard: usize, wanted: usize) -> bool {
        heard * HEARD_PART < wanted
    }

    /// Lists what keeps the node from being ready, where `lag_max` is as far behind as it may be.
    pub fn reasons(&self, lag_max: Duration) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |code, text| reasons.push(Reason { code, text });
        if self.lag > lag_max {
            let (versions, origins) = (self.versions_behind, self.origins_behind);
            add(
                "behind",
                format!(
                    "{versions} versions of {origins} nodes are missing here, the oldest for {:.0} s; {:.0} s are allowed",
                    self.lag.as_secs_f64(),
                    lag_max.as_secs_f64()
                ),
            );
        }
        if self.is_cut_off {
            let (heard, wanted) = (self.links_heard, self.links_wanted);
            add("cut_off", format!("only {heard} of {wanted} neighbours are heard"));
        }
        if self.is_rejoining {
            let text = "this node takes over all rows of another one, and is not through";
            add("rejoining", text.to_owned());
        }
        if let Some(error) = &self.apply_error {
            add("apply", format!("changes of other nodes cannot be written: {error}"));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_as_long_as_it_is_not_too_far_behind_and_hears_half_of_its_links() {
        let max = Duration::from_secs(30);
        let mut standing = Standing { lag: max, versions_behind: 7, ..Standing::default() };
        assert_eq!(standing.reasons(max), []);
        standing.lag += Duration::from_millis(1);
        standing.is_cut_off = true;
        standing.is_rejoining = true;
        standing.apply_error = Some("disk full".to_owned());
        let codes: Vec<_> = standing.reasons(max).into_iter().map(|reason| reason.code).collect();
        assert_eq!(codes, ["behind", "cut_off", "rejoining", "apply"]);
        for (heard, wanted, few) in [(0, 0, false), (0, 1, true), (1, 2, false), (2, 5, true)] {
            assert_eq!(Standing::are_few(heard, wanted), few, "{heard} of {wanted}");
        }
    }
}
