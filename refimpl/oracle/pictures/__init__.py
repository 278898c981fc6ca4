"""What the oracle knows of engines that draw: known bugs of LoRA in them, and which one an engine has."""

from .bugs import PictureBug as PictureBug
from .bugs import all_picture_bugs as all_picture_bugs
from .verdict import PictureVerdict as PictureVerdict
from .verdict import judge_pictures as judge_pictures
from .verdict import known_bugs as known_bugs
from .verdict import velocities as velocities
