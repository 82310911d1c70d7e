"""Where objects might be: the regions that the crop network looks at."""

from detect.proposals.base import Proposals, Proposer
from detect.proposals.grid import GridConfig, GridProposer
from detect.proposals.learned import LearnedConfig, LearnedProposer
from detect.proposals.precomputed import check_replaceable, load_proposals, save_proposals
from detect.proposals.selective_search import SelectiveSearchConfig, SelectiveSearchProposer

__all__ = [
    "GridConfig",
    "GridProposer",
    "LearnedConfig",
    "LearnedProposer",
    "Proposals",
    "Proposer",
    "SelectiveSearchConfig",
    "SelectiveSearchProposer",
    "check_replaceable",
    "load_proposals",
    "save_proposals",
]
