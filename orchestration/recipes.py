"""Which recipes there are, and which of them a command is about.

Belongs here: names of files under the recipes folder. Does not belong here: what a recipe says
(`assets/students/recipe`), whether its student can be trained (`running`).
"""

from orchestration.config import Config
from serving.errors import InvalidInputError


def list_recipes(config: Config) -> list[str]:
    """Return the names of the recipe files, sorted."""
    return sorted(path.stem for path in config.recipes.glob("*.yaml"))


def choose_recipe(config: Config, named: str | None) -> str:
    """Return the recipe that was named, or the default one.

    Raises:
        InvalidInputError: there is no recipe of that name.
    """
    name = config.default_recipe if named is None else named
    recipes = list_recipes(config)
    if name not in recipes:
        raise InvalidInputError(
            f"choosing the recipe {name!r}",
            expected=f"one of {', '.join(recipes) or 'the YAML files, of which there is none,'} "
            f"in {config.recipes}",
            found=repr(name),
            next_step="name one of them with --recipe, or add a YAML file",
        )
    return name
