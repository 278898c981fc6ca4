"""The same idea draws pictures: a Z-Image transformer over lora_delta; each picture has its own adapters."""

from .adapter_file import load_picture_adapter as load_picture_adapter
from .adapter_writer import save_picture_adapter as save_picture_adapter
from .captions import read_captions as read_captions
from .draw import draw as draw
from .draw import draw_latents as draw_latents
from .folder import load_picture_model as load_picture_model
from .request import PictureRequest as PictureRequest
from .weights import PictureModel as PictureModel
