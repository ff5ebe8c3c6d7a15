"""Whose students a release holds: those asked in turn, and those of skills, as configured.

Belongs here: reading the configuration and the recipes for them, and refusing what no run could
judge or release. Does not belong here: who they are by now (`assets/parity/tiers`,
`assets/releases/skills`).
"""

from collections.abc import Mapping

from assets.parity.arms import ArmPlan
from assets.parity.cascade import RecipeTerms, refuse_unfit_smaller, refuse_unfit_tiers
from assets.parity.prices import StatedPrice
from assets.releases.skills import SkillTerms, refuse_unfit_skills
from assets.students.recipe import AnyRecipe
from orchestration.config import Config

Recipes = Mapping[str, AnyRecipe]


def choose_tiers(config: Config, recipes: Recipes) -> tuple[str, ...]:
    """Return the recipes whose students a release asks in turn; none where it holds one student.

    Raises:
        InvalidInputError: no release could ask them so.
    """
    tiers = config.releases.tiers
    if len(tiers) < 2:
        return ()
    refuse_unfit_tiers(tiers, _state_recipes(config, recipes))
    return tiers


def plan_arms(config: Config, recipes: Recipes) -> ArmPlan:
    """Return which arms are set side by side, and who is asked in turn: tried or released.

    Raises:
        InvalidInputError: no report could be of the smaller student.
    """
    arms, smaller, main = config.parity.arms, config.parity.smaller_recipe, config.default_recipe
    if tiers := choose_tiers(config, recipes):
        return ArmPlan(arms=arms, tiers=tiers, is_released=True)
    if smaller is None:
        return ArmPlan(arms=arms)
    refuse_unfit_smaller(smaller, _state_recipes(config, recipes), main_recipe=main)
    return ArmPlan(arms=arms, tiers=(smaller, main))


def choose_skills(config: Config, recipes: Recipes) -> dict[str, SkillTerms]:
    """Return the skills of every release.

    Raises:
        InvalidInputError: no run could release one of them.
    """
    skills = {
        name: SkillTerms(recipe=s.adapter, pages=s.pages, high_stakes=s.high_stakes)
        for name, s in config.releases.skills.items()
    }
    lanes = {name: _state_lane(recipe) for name, recipe in recipes.items()}
    refuse_unfit_skills(skills, lanes, default_recipe=config.default_recipe)
    return skills


def _state_recipes(config: Config, recipes: Recipes) -> dict[str, RecipeTerms]:
    terms = {}
    for name, recipe in recipes.items():
        student = config.students.get(recipe.student)
        terms[name] = RecipeTerms(
            lane=_state_lane(recipe),
            price=StatedPrice(**student.price.model_dump()) if student else StatedPrice(),
            student=recipe.student,
        )
    return terms


def _state_lane(recipe: AnyRecipe) -> str:
    return str(getattr(recipe, "lane", "clean"))
