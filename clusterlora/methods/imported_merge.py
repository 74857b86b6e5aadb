"""One adapter per cluster, merged without training from adapters of its members that were trained elsewhere."""

from clusterlora.errors import BadSettings
from clusterlora.methods.imported_per_persona import imported_personal_adapters
from clusterlora.methods.merge import merge_of_members
from clusterlora.methods.method import StudyView
from clusterlora.values import MethodPlan


def imported_merge(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the merge of their cluster's imported adapters; who has none of their own gets it, too.

    Raises:
        BadSettings: a cluster none of whose members has an imported adapter.
    """
    imported = imported_personal_adapters(view)
    for number, members in enumerate(view.members):
        if not any(p in imported for p in members):
            raise BadSettings(
                f"method imported_merge: none of the {len(members)} personas of cluster {number} has an imported adapter; "
                "import theirs with clusterlora study import --personal FOLDER, or leave the method out"
            )
    return merge_of_members(view, "imported_merge", imported, name="imported-merged")
