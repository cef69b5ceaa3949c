"""ProductService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from typing import Any, TypeVar

from common.paging import Page
from common.request_key import Result
from common.rpc.convert import fill_money, fill_time, money_from
from common.rpc.reasons import refuses
from order_service.errors import ProductNotFound, ProductNotSeated, ProductSeated, SeatExists
from order_service.model.product import CreateProduct, Product, RestockProduct
from order_service.model.seat import AddSeats
from order_service.use_cases.product import Products
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc

Response = TypeVar(
    "Response", pb.CreateProductResponse, pb.RestockProductResponse, pb.AddSeatsResponse
)


class ProductServicer(order_pb2_grpc.ProductServiceServicer):
    def __init__(self, products: Products) -> None:
        self._products = products

    @refuses()
    async def CreateProduct(
        self, request: pb.CreateProductRequest, context: Any
    ) -> pb.CreateProductResponse:
        written = await self._products.write(
            CreateProduct(
                request.name, money_from(request.price), request.stock, request.request_id
            )
        )
        return _written(pb.CreateProductResponse(), written)

    @refuses(ProductNotFound, ProductSeated)
    async def RestockProduct(
        self, request: pb.RestockProductRequest, context: Any
    ) -> pb.RestockProductResponse:
        written = await self._products.write(
            RestockProduct(request.product_id, request.quantity, request.request_id)
        )
        return _written(pb.RestockProductResponse(), written)

    @refuses(ProductNotFound, ProductNotSeated, SeatExists)
    async def AddSeats(self, request: pb.AddSeatsRequest, context: Any) -> pb.AddSeatsResponse:
        written = await self._products.write(
            AddSeats(request.product_id, tuple(request.labels), request.request_id)
        )
        return _written(pb.AddSeatsResponse(), written)

    @refuses(ProductNotFound)
    async def GetProduct(
        self, request: pb.GetProductRequest, context: Any
    ) -> pb.GetProductResponse:
        product = await self._products.get_product(request.product_id)
        response = pb.GetProductResponse()
        _fill(response.product, product)
        return response

    @refuses()
    async def ListProducts(
        self, request: pb.ListProductsRequest, context: Any
    ) -> pb.ListProductsResponse:
        page = Page.of(request.page_size, request.page_token, filters=())
        found = await self._products.list_products(page)
        products, next_page_token = found.messages(_product)
        return pb.ListProductsResponse(products=products, next_page_token=next_page_token)


def _written(response: Response, written: Result[Product]) -> Response:
    """The response to a write."""
    response.replayed = written.replayed
    _fill(response.product, written.value)
    return response


def _product(product: Product) -> pb.Product:
    message = pb.Product()
    _fill(message, product)
    return message


def _fill(message: pb.Product, product: Product) -> None:
    message.product_id = product.product_id
    message.name = product.name
    fill_money(message.price, product.price.currency_code, product.price.amount_minor)
    message.stock = product.free
    message.reserved = product.reserved
    message.sold = product.sold
    message.version = product.version
    fill_time(message.create_time, product.create_time)
    fill_time(message.update_time, product.update_time)
    message.seated = product.seated
